"""The keys of the functions in api.py as types, for type checkers and editors; written by tests/write_api_keys.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Literal, TypedDict

Text = str | PathLike[str]
"""A text, or a path."""


class MaskingKeys(TypedDict, total=False):
    """Keys of Masking."""

    strategy: Literal["random", "block", "grid"]
    ratio: float
    in_encoder: bool


class DecoderKeys(TypedDict, total=False):
    """Keys of DecoderConfig."""

    embed_dim: int
    depth: int
    num_heads: int
    attention: Literal["self", "cross"]
    predict: float


class CropKeys(TypedDict, total=False):
    """Keys of Crop."""

    scale: Sequence[float]
    flip: bool
    turn: bool
    reduced_decoding: bool


class RecoveryKeys(TypedDict, total=False):
    """Keys of Recovery."""

    skips: int
    rewinds: int
    slow_down: float
    spike: float | None


class SlurmKeys(TypedDict, total=False):
    """Keys of SlurmConfig."""

    nodes: int
    processes_per_node: int
    gpus_per_node: int
    cpus_per_process: int
    memory_gb: float | None
    minutes: int
    save_seconds: int
    partition: Text | None
    account: Text | None
    qos: Text | None
    constraint: Text | None


class ProbeKeys(TypedDict, total=False):
    """Keys of ProbeConfig."""

    data: Text | None
    labels: int
    val: int
    kinds: Sequence[Literal["knn", "linear", "attentive"]]
    times: int
    layout: Literal["auto", "class_folders"]
    label_column: Text | Sequence[Text] | None


class LoraKeys(TypedDict, total=False):
    """Keys of Lora."""

    rank: int
    alpha: float
    dropout: float
    targets: Sequence[Text]


class SuiteDataKeys(TypedDict, total=False):
    """Keys of SuiteData."""

    path: Text | None
    layout: Literal["auto", "class_folders"]
    label_column: Text | Sequence[Text] | None
    unlabelled: Text | Sequence[Text] | None
    pool: int | float | None
    val: int | float | Literal["cross"]
    test: int | float
    seed: int
    group: Text | None
    near: Literal["auto", "full", "off"]
    broken: float
    public: Literal["imagenet", "coco", "ade20k", "voc", "cityscapes", "inaturalist", "none"] | None


class TaskKeys(TypedDict, total=False):
    """Keys of TaskConfig."""

    task: Text
    data: Text
    labels: Sequence[int]
    seeds: Sequence[int] | Mapping[str, Sequence[int]]
    val: int | float
    test: int | float
    seed: int
    image_size: int | Sequence[int] | None
    recipe: Mapping[str, object]
    arms: Mapping[str, Mapping[str, object]]
    steps: int | Mapping[str, int] | None
    rates: Sequence[float] | None
    max_doublings: int | None
    evaluations: int | None
    short: bool
    public: Literal["imagenet", "coco", "ade20k", "voc", "cityscapes", "inaturalist", "none"] | None


class ArmKeys(TypedDict, total=False):
    """Keys of ArmConfig."""

    start: Text
    label: Text
    weights: Text | None
    model: Literal["vit_nano", "vit_micro", "vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"] | None
    image_size: int | Sequence[int] | None
    pool: int | float | None
    frozen: bool
    x: float | None
    compute_of: Text | None
    pretrain: Mapping[str, object]
    recipe: Mapping[str, object]
    steps: Mapping[str, int]


class TuningKeys(TypedDict, total=False):
    """Keys of Tuning."""

    rates: Sequence[float]
    per_seed: bool
    draws: int
    max_doublings: int
    max_extensions: int
    seed: int | None
    check_seeds: int | None


class BudgetKeys(TypedDict, total=False):
    """Keys of Budget."""

    hours: float | None
    money: float | None
    price: float | None


class TransferKeys(TypedDict, total=False):
    """Keys of every ``maelift transfer``."""

    data: Text
    out: Text
    window: Sequence[float] | None
    frame: int | Literal["all"] | None
    slice_axis: int | None
    slice_step: int
    slice_content: float
    channels: int | Sequence[int | Text] | None
    value_range: Sequence[float] | None
    nodata: float | None
    max_nodata: float
    unscale: bool
    encoder: Text | None
    init: Literal["encoder", "supervised", "scratch"]
    model: Text
    image_size: int | Sequence[int] | None
    patch_size: int | None
    background: Text | None
    seed: int
    epochs: float
    steps: int | None
    batch_size: int
    base_lr: float
    lr: float | None
    layer_decay: float
    weight_decay: float
    betas: Sequence[float]
    optimizer: Literal["adamw", "sgd"]
    warmup: float
    schedule: Literal["cosine", "linear", "steps"]
    drop_path: float
    ema_decay: float | None
    clip_grad: float | None
    flip: bool
    turn: bool
    shown: Sequence[int | Text] | Literal["all"] | None
    recipe: Literal["auto", "paper", "small"]
    labels: int | float | None
    val: int | float
    test: int | float
    split_seed: int
    group: Text | None
    folds: int | None
    fold: int
    accumulate: int
    evaluations: int
    patience: int | None
    precision: Literal["auto", "float32", "bfloat16", "float16"]
    device: Literal["auto", "cpu", "cuda"]
    workers: int | None
    checkpoint_minutes: float
    max_rejected: float
    evaluate: Literal["train", "val", "test"] | None


class PretrainKeys(TypedDict, total=False):
    """Keys of ``maelift pretrain``."""

    window: Sequence[float] | None
    frame: int | Literal["all"] | None
    slice_axis: int | None
    slice_step: int
    slice_content: float
    channels: int | Sequence[int | Text] | None
    value_range: Sequence[float] | None
    nodata: float | None
    max_nodata: float
    unscale: bool
    shown: Sequence[int | Text] | Literal["all"] | None
    data: Text | Sequence[Text]
    out: Text
    mix: Sequence[float] | None
    model: Literal["vit_nano", "vit_micro", "vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"]
    image_size: int | Sequence[int] | None
    patch_size: int | None
    background: Text
    statistics: Literal["auto", "imagenet", "data"]
    masking: MaskingKeys
    decoder: DecoderKeys
    crop: CropKeys
    init: Text | None
    init_decoder: Literal["auto", "new"]
    norm_pix_loss: bool
    epochs: float
    batch_size: int
    accumulate: int | Literal["auto"]
    crops_per_image: int
    base_lr: float
    lr: float | None
    warmup_epochs: float | None
    weight_decay: float
    betas: Sequence[float]
    layer_decay: float
    ema_decay: float | None
    clip_grad: float | None
    precision: Literal["auto", "float32", "bfloat16", "float16"]
    parallel: Literal["ddp", "fsdp"]
    compile: bool
    activation_checkpointing: bool
    recovery: RecoveryKeys
    device: Literal["auto", "cpu", "cuda"]
    launch: Literal["here", "slurm"]
    slurm: SlurmKeys
    workers: int | None
    holdout: int | float
    evaluations: int
    probe: ProbeKeys
    log_every: int
    wandb: Text | None
    checkpoint_minutes: float
    checkpoints: int
    max_rejected: float
    audit: Literal["auto", "full", "light"]
    reindex: bool
    seed: int
    recipe: Text | None
    budget: Text | None


class ReconstructKeys(TypedDict, total=False):
    """Keys of ``maelift reconstruct``."""

    shown: Sequence[int | Text] | Literal["all"] | None
    encoder: Text
    images: Text
    out: Text
    mask: Text | None
    masking: MaskingKeys
    draws: int
    keep_visible: bool
    brightness: Literal["neighbours", "truth"]
    compare: bool
    seed: int
    device: Literal["auto", "cpu", "cuda"]


class ClassifyKeys(TransferKeys, total=False):
    """Keys of ``maelift transfer classify``."""

    label_smoothing: float
    mixup: float
    cutmix: float
    random_erasing: float
    crop_scale: Sequence[float]
    method: Literal["full", "partial", "lora", "linear", "attentive", "knn"]
    multi_label: bool | None
    layout: Literal["auto", "class_folders"]
    label_column: Text | Sequence[Text] | None
    blocks: float
    lora: LoraKeys
    features: Literal["mean", "class_token", "both", "head"]
    crops: int
    cache: Text | None
    solver: Literal["lars", "lbfgs"]
    l2: float | None
    probe_heads: int | None
    neighbours: int
    temperature: float | None


class DetectKeys(TransferKeys, total=False):
    """Keys of ``maelift transfer detect``."""

    relative_positions: bool
    pyramid_channels: int
    pyramid_scales: Sequence[float] | None
    head_channels: int
    box_convs: int
    fc_dim: int
    mask_convs: int
    anchor_scale: float
    anchor_sizes: Sequence[float] | None
    proposals: int
    region_samples: int
    box_samples: int
    score_threshold: float
    max_detections: int
    layout: Literal["auto", "coco", "yolo", "voc"]
    engine: Literal["torchvision", "detectron2"]
    head: Literal["auto", "faster", "mask", "cascade"]
    window_size: int | None
    jitter: Sequence[float]


class SegmentKeys(TransferKeys, total=False):
    """Keys of ``maelift transfer segment``."""

    engine: Literal["torch", "mmseg"]
    head: Literal["linear", "conv", "upernet"]
    head_channels: int | None
    window_size: int
    relative_positions: bool
    layout: Literal["folders", "ade20k", "cityscapes"]
    ignore: int | Sequence[int] | None
    scale: Sequence[float]
    cat_max_ratio: float
    distort: bool
    inference: Literal["slide", "whole"]
    stride: int | Sequence[int] | None
    short_side: int | None


class EmbedKeys(TypedDict, total=False):
    """Keys of ``maelift embed``."""

    shown: Sequence[int | Text] | Literal["all"] | None
    window: Sequence[float] | None
    frame: int | Literal["all"] | None
    slice_axis: int | None
    slice_step: int
    slice_content: float
    channels: int | Sequence[int | Text] | None
    value_range: Sequence[float] | None
    nodata: float | None
    max_nodata: float
    unscale: bool
    encoder: Text
    images: Text | Sequence[Text]
    out: Text
    labels: bool
    label_column: Text | Sequence[Text] | None
    layout: Literal["auto", "class_folders"]
    multi_label: bool | None
    features: Literal["mean", "class_token", "both", "head"] | None
    neighbours: int
    page: bool
    image_size: int | Sequence[int] | None
    background: Text | None
    batch_size: int
    precision: Literal["auto", "float32", "bfloat16", "float16"]
    device: Literal["auto", "cpu", "cuda"]
    workers: int | None
    seed: int


class BenchKeys(TypedDict, total=False):
    """Keys of ``maelift bench``."""

    window: Sequence[float] | None
    frame: int | Literal["all"] | None
    slice_axis: int | None
    slice_step: int
    slice_content: float
    channels: int | Sequence[int | Text] | None
    value_range: Sequence[float] | None
    nodata: float | None
    max_nodata: float
    unscale: bool
    shown: Sequence[int | Text] | Literal["all"] | None
    out: Text
    title: Text
    data: SuiteDataKeys
    labels: Sequence[int]
    seeds: Sequence[int] | Mapping[str, Sequence[int]]
    tasks: Mapping[str, TaskKeys]
    pretrain_seeds: Sequence[int]
    effect: float | None
    looks: Sequence[int]
    model: Literal["vit_nano", "vit_micro", "vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"]
    image_size: int | Sequence[int] | None
    patch_size: int | None
    arms: Mapping[str, ArmKeys]
    steps: Mapping[str, int]
    axis: Text | None
    published: Mapping[str, Text]
    baseline: Text
    simple_arms: bool
    tuning: TuningKeys
    budget: BudgetKeys
    evaluations: int
    device: Literal["auto", "cpu", "cuda"]
    executor: Literal["local", "slurm", "ray"]
    slurm: SlurmKeys
    workers: int | None
    threads: int
    stall_minutes: float


class ExportKeys(TypedDict, total=False):
    """Keys of ``maelift export``."""

    image_size: int | Sequence[int] | None
    patch_size: int | None
    global_pool: Literal["avg", "token"]
    decoder: Text | None
    window_size: int | None
    out_channels: int
    num_classes: int | None
    batch_size: int
    epochs: int | None
    train_json: Text | None
    train_images: Text | None
    val_json: Text | None
    val_images: Text | None
    crop_size: int | Sequence[int] | None
    head_channels: int | None
    data: Text
    train_masks: Text
    val_masks: Text
    image_suffix: Text | None
    classes: Sequence[Text]
    ignore_index: int
    reduce_zero_label: bool
    iterations: int
    workers: int
    dynamic_size: bool
    normalize: bool
