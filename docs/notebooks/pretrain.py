# %% [markdown]
# # Pretrain and look
#
# A masked autoencoder hides three quarters of an image and learns to fill them in. Here one is pretrained on 2,000 small images, in about
# a minute on a CPU: long enough to see that it learns, far too short for good weights.
#
# The images are the first 2,000 of Fashion-MNIST (MIT licence). For your own, give a folder as `data`.

# %%
# !maelift data fashion-mnist out=data/fashion-mnist

# %%
import gzip

import matplotlib.pyplot as plt
import numpy as np

with gzip.open("data/fashion-mnist/train-images-idx3-ubyte.gz") as file:
    images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)[:2000]
np.save("images.npy", images)
print(images.shape, images.dtype)

# %% [markdown]
# ## Pretrain
#
# Keys are those of [`maelift pretrain`](../reference/pretrain.md); nested ones are mappings. `recipe="auto"` with a `budget` would choose
# model, sizes and epochs. 100 images are held out and never trained on.

# %%
import maelift

result = maelift.pretrain(
    data="images.npy",
    out="runs/pretrain",
    model="vit_nano",
    image_size=28,
    patch_size=7,
    decoder={"embed_dim": 64, "depth": 2, "num_heads": 4},
    epochs=5,
    batch_size=64,
    lr=2e-3,
    warmup_epochs=1,
    holdout=100,
    evaluations=5,
)
print(result.summary())

# %% [markdown]
# A result is shown as a table by itself. `runs/pretrain/summary.html` has curves, reconstructions and what happened.

# %%
result

# %%
result.plot()

# %% [markdown]
# The same figures as a pandas data frame, a row each time that they were logged (`pip install pandas`):

# %%
result.metrics()[["step", "train/loss", "held_out/loss"]].dropna()

# %% [markdown]
# The loss is the mean squared error of hidden patches, each normalised by its own mean and deviation: 1 is a model that predicts the mean of
# every patch. It falls steadily; more epochs would lower it further.
#
# ## Reconstructions
#
# [`maelift.reconstruct`](../reconstruction.md) hides parts of images and fills them in: the image, what the encoder saw, the result.

# %%
from pathlib import Path

from PIL import Image

Path("some").mkdir(exist_ok=True)
for number in range(3):
    Image.fromarray(images[number]).save(f"some/{number}.png")
filled = maelift.reconstruct(encoder=result.encoder, images="some", out="filled", masking={"ratio": 0.5})
for path in sorted(filled.out.glob("*.compare.png")):
    plt.figure(figsize=(6, 2))
    plt.imshow(plt.imread(path), cmap="gray")
    plt.axis("off")
plt.show()

# %% [markdown]
# ## What the encoder sees as alike
#
# The mean of the patch tokens describes an image. The images whose description points the same way should look alike.

# %%
import torch

encoder = maelift.load_encoder(result.encoder).eval()
encoder

# %%
pixels = torch.from_numpy(images[:1000]).unsqueeze(1)  # (N, 1, 28, 28), stored values from 0 to 255
with torch.no_grad():
    features = encoder.forward_features(encoder.preprocessing.normalize(pixels)).pooled()
directions = torch.nn.functional.normalize(features - features.mean(dim=0), dim=1)
nearest = (directions[:4] @ directions.T).topk(6).indices  # the first is the image itself

figure, axes = plt.subplots(4, 6, figsize=(6, 4))
for row, numbers in zip(axes, nearest, strict=True):
    for axis, number in zip(row, numbers, strict=True):
        axis.imshow(images[number], cmap="gray")
        axis.axis("off")
plt.show()

# %% [markdown]
# Next: [transfer and export](transfer.md). Pretraining for real: [from one folder to a cluster](../pretraining.md).
