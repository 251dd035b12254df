"""What the whole stock model says to the pictures themselves: the right value of an answer from the store."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from store.questions.question import Question


@torch.no_grad()
def stock_answers(
    checkpoint: Path,
    images: Path,
    questions: Sequence[Question],
    batch_size: int,
    max_new_tokens: int,
    dtype: torch.dtype = torch.float32,
) -> list[str]:
    """Greedy answers of `LlavaForConditionalGeneration.generate`, padded on the left in batches of `batch_size`."""
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype).eval()
    processor = AutoProcessor.from_pretrained(checkpoint, backend="pil")
    processor.tokenizer.padding_side = "left"
    said: list[str] = []
    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        texts = [
            processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.question}]}],
                add_generation_prompt=True,
            )
            for question in batch
        ]
        pictures = [Image.open(images / question.image).convert("RGB") for question in batch]
        inputs = processor(images=pictures, text=texts, padding=True, return_tensors="pt").to(dtype)
        tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
        said += processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in said]
