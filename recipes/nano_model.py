"""A small Qwen3 decoder for training, and its optimiser.

In: token ids of rows packed with documents, a mask of who may look where. Out: logits at the wanted
positions. Parameter names are those of transformers' Qwen3ForCausalLM, so `state_dict()` is a checkpoint. It
knows no data, no schedule and no files.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepfast.train.muon import Muon


@dataclass(frozen=True)
class NanoConfig:
    vocab_size: int
    hidden_size: int = 192
    num_hidden_layers: int = 6
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    head_dim: int = 32
    intermediate_size: int = 384
    max_position_embeddings: int = 2048
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-rotation RoPE. [B, H, S, D], [S, D/2] -> [B, H, S, D]"""
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.dim, config.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(self.dim, eps=config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(self.dim, eps=config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        rows, length, _ = x.shape
        q = self.q_proj(x).view(rows, length, self.heads, self.dim).transpose(1, 2)  # [B, H, S, D]
        k = self.k_proj(x).view(rows, length, self.kv_heads, self.dim).transpose(1, 2)  # [B, Hkv, S, D]
        v = self.v_proj(x).view(rows, length, self.kv_heads, self.dim).transpose(1, 2)
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        groups = self.heads // self.kv_heads
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # [B, H, S, D]
        out: Tensor = self.o_proj(y.transpose(1, 2).reshape(rows, length, -1))
        return out


class FeedForward(nn.Module):
    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Decoder(nn.Module):
    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, tokens: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)  # [B, S, D]
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        out: Tensor = self.norm(x)
        return out


class Nano(nn.Module):
    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * config.num_hidden_layers) ** 0.5 if deep else 0.02)

    def forward(self, tokens: Tensor, mask: Tensor, wanted: Tensor) -> Tensor:
        """Logits at the flat positions `wanted`. [B, S], [B, 1, S, S], [N] -> [N, V]"""
        positions = torch.arange(tokens.shape[1], device=tokens.device, dtype=torch.float32)
        half = self.config.head_dim // 2
        steps = torch.arange(half, device=tokens.device, dtype=torch.float32)
        angles = torch.outer(positions, self.config.rope_theta ** (-steps / half))  # [S, D/2]
        x = self.model(tokens, angles.cos(), angles.sin(), mask)  # [B, S, D]
        return F.linear(x.flatten(0, 1)[wanted], self.model.embed_tokens.weight)


def document_mask(numbers: Tensor) -> Tensor:
    """True where a position may look: itself and earlier ones of the same document. [B, S] -> [B, 1, S, S]"""
    length = numbers.shape[1]
    same = numbers[:, :, None] == numbers[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=numbers.device).tril()
    return (same & causal)[:, None]


def optimisers(model: Nano, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    matrices: list[Any] = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    others: list[Any] = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    muon = Muon(matrices, others, lr=rate)
    for group in muon.param_groups:
        group["peak"] = group["lr"]
    return [muon]
