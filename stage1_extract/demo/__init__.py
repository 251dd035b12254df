"""The demo: scenes of coloured shapes, and a tiny LLaVA that was trained on such scenes."""
