"""Devices are opened so that two runs give the same bits."""

import torch

from store.layout.tensors import pick_device


def test_a_device_is_opened_without_the_attention_kernel_that_changes_bits_from_call_to_call():
    torch.backends.cuda.enable_cudnn_sdp(True)
    pick_device("cpu")
    assert not torch.backends.cuda.cudnn_sdp_enabled()
