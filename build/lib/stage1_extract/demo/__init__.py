"""The embedded default: scenes of coloured shapes, and a tiny LLaVA trained on such scenes."""
