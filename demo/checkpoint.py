"""The tiny model's configuration and its checkpoint directory, in the layout of Qwen3-VL's own."""

import json
from pathlib import Path

import torch
from prompts import SPECIAL_TOKENS
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

HIDDEN = 128
HEAD_DIM = 64

# What the engine should assume for this checkpoint. Qwen3-VL's own floor for a video frame, 131,072
# pixels, would blow 64x64 frames up 32 times; this model was trained on frames as they are.
ENGINE_DEFAULTS = {"video_min_pixels": 4096, "video_max_pixels": 65536, "max_length": 2048}

PIXELS = {
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
}
IMAGE_LIMITS = {"min_pixels": 4096, "max_pixels": 1310720}

# The reranker's prompt as Qwen3-VL-Reranker writes it, for tools that go by a chat template: roles
# system (the instruction), query and document, each a text or a list of
# {"type": "image" | "video" | "text"} parts.
CHAT_TEMPLATE = """\
{%- macro render(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}
{%- for part in content -%}
{%- if part.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>
{%- elif part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- else -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set default = 'Given a search query, retrieve relevant candidates that answer the query.' -%}
{%- set slots = namespace(system=default, query='', document='') -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}{%- set slots.system = render(message.content) -%}
{%- elif message.role == 'query' -%}{%- set slots.query = render(message.content) -%}
{%- elif message.role == 'document' -%}{%- set slots.document = render(message.content) -%}
{%- endif -%}
{%- endfor -%}
{{- '<|im_start|>system\\n' -}}
{{- 'Judge whether the Document meets the requirements based on the Query ' -}}
{{- 'and the Instruct provided. Note that the answer can only be "yes" or "no".' -}}
{{- '<|im_end|>\\n<|im_start|>user\\n' -}}
{{- '<Instruct>: ' + slots.system + '<Query>:' + slots.query + '\\n<Document>:' + slots.document -}}
{{- '<|im_end|>\\n<|im_start|>assistant\\n' -}}
"""


def config_dict(tokenizer: Tokenizer) -> dict:
    """config.json in the form of transformers 4.57, which 5.x reads too."""
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    text = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "dtype": "bfloat16",
        "eos_token_id": ids["<|im_end|>"],
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": 256,
        "max_position_embeddings": 32768,
        "model_type": "qwen3_vl_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "pad_token_id": None,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "mrope_interleaved": True,
            "mrope_section": [12, 10, 10],
            "rope_type": "default",
        },
        "rope_theta": 5000000,
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": -(-tokenizer.get_vocab_size() // 64) * 64,
    }
    vision = {
        "deepstack_visual_indexes": [1],
        "depth": 3,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 96,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 256,
        "model_type": "qwen3_vl",
        "num_heads": 3,
        "num_position_embeddings": 64,
        "out_hidden_size": HIDDEN,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "dtype": "bfloat16",
        "image_token_id": ids["<|image_pad|>"],
        "model_type": "qwen3_vl",
        "text_config": text,
        "tie_word_embeddings": True,
        "transformers_version": "4.57.1",
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": vision,
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
    }


def new_model(tokenizer: Tokenizer, work: Path) -> Qwen3VLForConditionalGeneration:
    """A random model, made through config.json so that training runs what loading will run."""
    write_json(work / "config.json", config_dict(tokenizer))
    config = Qwen3VLConfig.from_pretrained(work)
    config.dtype = config.text_config.dtype = None
    return Qwen3VLForConditionalGeneration(config).float()


def load_model(folder: Path) -> tuple[Qwen3VLForConditionalGeneration, Tokenizer]:
    """Weights are stored in bfloat16 and run in float32."""
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def tokenizer_config(tokenizer: Tokenizer) -> dict:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    added = {
        str(tokenizer.token_to_id(token)): {"content": token, **flags, "special": True}
        for token in SPECIAL_TOKENS
    }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": SPECIAL_TOKENS[1:],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 32768,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }


def save_checkpoint(
    folder: Path, model: Qwen3VLForConditionalGeneration, tokenizer: Tokenizer
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embeddings
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "config.json", config_dict(tokenizer))
    write_json(folder / "tokenizer_config.json", tokenizer_config(tokenizer))
    write_json(
        folder / "preprocessor_config.json",
        PIXELS
        | IMAGE_LIMITS
        | {
            "size": {"shortest_edge": 4096, "longest_edge": 1310720},
            "image_processor_type": "Qwen2VLImageProcessorFast",
        },
    )
    write_json(
        folder / "video_preprocessor_config.json",
        PIXELS
        | {
            "size": {"shortest_edge": 4096, "longest_edge": 25165824},
            "video_processor_type": "Qwen3VLVideoProcessor",
        },
    )
    write_json(folder / "reranker.json", ENGINE_DEFAULTS)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
