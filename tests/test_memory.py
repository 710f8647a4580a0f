"""The memory planner's closed form, against an independent count of what PyTorch really keeps."""

import pytest
import torch
from peft import PeftModel
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

from ftdocs import hardware, measure, memory
from ftdocs.errors import InputError
from ftdocs.methods.lora import add_lora

SHAPES = {
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "grouped-query": {"num_key_value_heads": 1},
    "wide heads": {"head_dim": 64},
}


def config(**changes: object) -> LlamaConfig:
    shape = {
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "attn_implementation": "sdpa",
    }
    return LlamaConfig(**{**shape, **changes})


def model(shape: LlamaConfig, method: str) -> torch.nn.Module | PeftModel:
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(
        shape, dtype=torch.float32 if method == "full" else torch.bfloat16
    )
    return made if method == "full" else add_lora(made, rank=8)


def kept(trainable: torch.nn.Module, batch: int, length: int) -> int:
    """Bytes of the storages that one forward pass saves for the backward pass, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in trainable.parameters()}
    storages = {}

    def look(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.randint(0, 512, (batch, length))
    with saved_tensors_hooks(look, lambda tensor: tensor), torch.autocast("cpu", dtype=torch.bfloat16):
        output = trainable(input_ids=tokens, labels=tokens)
    del output
    return sum(storages.values())


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_closed_form_counts_what_autograd_keeps(method: str, shape: str) -> None:
    # The difference of two depths is what layers keep; embedding, last norm and loss cancel out.
    small, large = (config(**SHAPES[shape], num_hidden_layers=layers) for layers in (1, 3))
    real = kept(model(large, method), 2, 256) - kept(model(small, method), 2, 256)
    forms = [
        memory.training_bytes(each, method, rank=8, batch_size=2, seq_len=256) for each in (small, large)
    ]
    few, many = (parts["activations"] + parts["bf16 copies"] for parts in forms)
    # Left out: one number a head and a norm, and LoRA's rank-wide vectors; small, but not in a model this narrow.
    assert real == pytest.approx(many - few, rel=0.01 if method == "full" else 0.03)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kind", [MistralConfig, Qwen2Config])
def test_other_architectures_with_the_same_layers_keep_the_same(method: str, kind: type) -> None:
    shape = config().to_dict()
    for name in ("model_type", "architectures", "attention_bias", "mlp_bias", "head_dim"):
        shape.pop(name, None)
    small, large = (kind(**{**shape, "num_hidden_layers": layers}) for layers in (1, 3))
    for each in (small, large):
        each._attn_implementation = "sdpa"
    real = kept(model(large, method), 2, 256) - kept(model(small, method), 2, 256)
    forms = [
        memory.training_bytes(each, method, rank=8, batch_size=2, seq_len=256) for each in (small, large)
    ]
    few, many = (parts["activations"] + parts["bf16 copies"] for parts in forms)
    assert real == pytest.approx(many - few, rel=0.01 if method == "full" else 0.03)


def test_an_architecture_that_keeps_other_things_is_refused_not_guessed() -> None:
    with pytest.raises(InputError, match=r"memory of gpt2: no closed form.*llama, mistral, qwen2"):
        memory.training_bytes(GPT2Config())


@pytest.mark.parametrize("method", ["full", "lora"])
def test_resting_parts_are_those_of_a_real_optimiser(method: str) -> None:
    shape = config()
    trainable = model(shape, method)
    optimiser = torch.optim.AdamW([p for p in trainable.parameters() if p.requires_grad])
    tokens = torch.randint(0, 512, (1, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trainable(input_ids=tokens, labels=tokens).loss.backward()
    gradients = sum(p.grad.nbytes for p in trainable.parameters() if p.grad is not None)
    optimiser.step()
    moments = sum(t.nbytes for state in optimiser.state.values() for t in state.values() if t.ndim)
    parts = memory.training_bytes(shape, method, rank=8)
    assert parts["weights"] == sum(p.nbytes for p in trainable.parameters())
    assert parts["gradients"] == gradients
    assert parts["optimiser"] == moments


def test_a_checkpoint_takes_what_the_disk_form_says(tmp_path) -> None:
    trainable = model(config(), "full")
    optimiser = torch.optim.AdamW(trainable.parameters())
    trainable(
        input_ids=torch.zeros(1, 4, dtype=torch.long), labels=torch.zeros(1, 4, dtype=torch.long)
    ).loss.backward()
    optimiser.step()
    trainable.save_pretrained(tmp_path)
    torch.save(optimiser.state_dict(), tmp_path / "optimizer.pt")
    size = sum(file.stat().st_size for file in tmp_path.iterdir())  # the rest of a checkpoint is small
    parts = memory.disk_bytes(config(), "full", checkpoints=1)
    assert size == pytest.approx(parts["checkpoints"], rel=0.02)
    assert (tmp_path / "model.safetensors").stat().st_size == pytest.approx(parts["result"], rel=0.02)


def test_the_peak_is_the_larger_of_two_moments() -> None:
    parts = memory.training_bytes(config(), "full", batch_size=1, seq_len=1)
    assert memory.peak_bytes(parts) == parts["weights"] + parts["optimiser"] + parts["gradients"]
    parts = memory.training_bytes(config(), "full", batch_size=8, seq_len=512)
    assert memory.peak_bytes(parts) == sum(parts.values()) - parts["gradients"]


@pytest.mark.skipif(hardware.device().type != "cpu", reason="looks at the memory of the process")
def test_a_measured_peak_sees_memory_that_is_freed_again(run_python) -> None:
    """In a process of its own: memory that earlier tests freed would be used again and hide the peak."""
    done = run_python("""
import time
import torch
from ftdocs import measure

def work():
    block = torch.ones(50_000_000)
    time.sleep(0.5)  # on a busy machine the thread that looks has to get its turn
    del block

print(measure.measured_peak(work), measure.measured_peak(lambda: None))
""")
    assert done.returncode == 0, done.stderr
    block, nothing = map(int, done.stdout.split())
    assert block == pytest.approx(200e6, rel=0.05)
    assert nothing < 20e6


def test_a_measured_peak_lets_an_error_through() -> None:
    with pytest.raises(ZeroDivisionError):
        measure.measured_peak(lambda: 1 / 0)
