# %% [markdown]
# # Transfer and export
#
# An encoder that was pretrained without labels is fine-tuned with 200 of them, predicts, and is exported to timm with a certificate that it
# computes the same there. About two minutes on a CPU.

# %%
# !maelift data fashion-mnist out=data/fashion-mnist

# %% [markdown]
# ## An encoder
#
# A very short pretraining, as in [pretrain and look](pretrain.md). Any encoder file will do, also weights that you downloaded:
# [weights of others](../import.md).

# %%
import gzip

import maelift
import numpy as np

with gzip.open("data/fashion-mnist/train-images-idx3-ubyte.gz") as file:
    images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)[:2000]
np.save("images.npy", images)
pretrained = maelift.pretrain(
    data="images.npy",
    out="runs/encoder",
    model="vit_nano",
    image_size=28,
    patch_size=7,
    decoder={"embed_dim": 64, "depth": 2, "num_heads": 4},
    epochs=2,
    batch_size=64,
    lr=2e-3,
    warmup_epochs=1,
)

# %% [markdown]
# ## Fine-tune
#
# `labels=200` draws 200 of the 60,000 labelled images, evenly over the ten classes. Weights are chosen on validation images; the 10,000 test
# images are read once, at the end. Keys: [`maelift transfer classify`](../reference/transfer_classify.md).

# %%
result = maelift.transfer(
    "classify",
    encoder=pretrained.encoder,
    data="data/fashion-mnist",
    labels=200,
    val=500,
    out="runs/classes",
    recipe="small",
    steps=100,
    batch_size=32,
    evaluations=2,
)
print(result.summary())

# %%
result.plot()

# %% [markdown]
# One seed says little: another draw of 200 images gives some points more or less. [Benchmark](benchmark.md) is the way to compare.
#
# ## Predict
#
# A model file states its classes and how images must be prepared; images are files, PIL images or arrays.

# %%
model = maelift.load_model(result.model)
for number, prediction in enumerate(model.predict(list(images[:5]))):
    print(number, prediction)

# %% [markdown]
# ## Export
#
# `export` writes weights and configs for a framework, loads them back as a user of it would, and compares every tensor and the features of
# test pictures. It writes nothing where they differ. `to="detectron2"`, `"mmseg"`, `"torchvision"`, `"transformers"` and `"onnx"` work
# the same way, where those are installed ([other frameworks](../adapters.md)).

# %%
exported = maelift.export(encoder=pretrained.encoder, to="timm", out="encoder_timm")
print(exported.summary())

# %%
import timm
import torch

ours = maelift.load_encoder(pretrained.encoder).eval()
theirs = timm.create_model("local-dir:encoder_timm", pretrained=True).eval()
pixels = ours.preprocessing.normalize(torch.from_numpy(images[:4]).unsqueeze(1))
with torch.no_grad():
    difference = ours.forward_features(pixels).tokens - theirs.forward_features(pixels)[:, theirs.num_prefix_tokens :]
print(f"largest difference of a feature: {difference.abs().max():.1e}")
