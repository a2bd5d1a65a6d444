"""What tests/golden/lm_eval and tests/golden/hf_eval share: the harness's tasks on our rows, and SmolLM2's tokenizer by Hugging Face's library."""

import json
import os

import datasets
import gguf
import lm_eval
import tokenizers
import yaml
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

assert lm_eval.__version__ == "0.4.13"
HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
MODEL = os.path.join(ROOT, "models/SmolLM2-135M-Instruct.Q4_1.gguf")
rows = json.load(open(os.path.join(HERE, "eval/rows.json")))


def tokenizer():
    """As SmolLM2's tokenizer.json has it."""
    reader = gguf.GGUFReader(MODEL)
    strings = lambda key: reader.get_field(f"tokenizer.ggml.{key}").contents()  # noqa: E731
    merges = [tuple(m.split(" ")) for m in strings("merges")]
    vocab = {token: i for i, token in enumerate(strings("tokens"))}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
    digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, byte_level])
    kinds = reader.get_field("tokenizer.ggml.token_type").contents()
    made.add_special_tokens([t for t, kind in zip(strings("tokens"), kinds) if kind == gguf.TokenType.CONTROL])
    return made


def download(task, dataset_kwargs=None, **kwargs):
    of_task = datasets.Dataset.from_list(rows[task.config.task])
    task.dataset = datasets.DatasetDict({split: of_task for split in ["train", "validation", "test"]})


def manager(work):
    """The harness's own tasks, and two of MosaicML's rows, whose configurations are written into `work`. All are asked our rows."""
    ConfigurableTask.download = download
    common = {"dataset_path": "json", "output_type": "multiple_choice", "validation_split": "validation"}
    metrics = lambda *names: [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in names]  # noqa: E731
    mosaic = {
        "mosaic_query": {
            "doc_to_text": "{{query}}", "doc_to_choice": "choices", "doc_to_target": "gold", "metric_list": metrics("acc", "acc_norm"),
        },
        "mosaic_contexts": {
            "doc_to_text": "{{gold}}", "doc_to_choice": "context_options", "doc_to_target": "continuation", "metric_list": metrics("acc"),
        },
    }  # fmt: skip
    for name, config in mosaic.items():
        with open(f"{work}/{name}.yaml", "w") as file:
            yaml.dump({"task": name, **common, **config, "metadata": {"version": 0.0}}, file)
    return TaskManager(include_path=work)
