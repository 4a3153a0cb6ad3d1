# %% [markdown]
# # Benchmark and read the verdict
#
# Was pretraining worth it? A suite trains each arm with the same labelled images, seed by seed, and reports differences with intervals. Here
# the quickstart's suite in its smallest form: 2,000 images to pretrain on, 50 labels, three seeds; some minutes on a CPU. For your own
# images, `maelift try DATA` does all of it within a given time.

# %%
# !maelift data fashion-mnist out=data/fashion-mnist

# %% [markdown]
# ## Run
#
# Keys are those of [`maelift bench`](../reference/bench.md). `baseline="scratch"` compares with the same network without
# pretraining only; without it a small CNN, plain pixels and the frozen encoder compete too, as they should. The effort is cut everywhere,
# so nothing here is a statement about MAE. Stop it at
# any time: the same call goes on, and a finished suite answers at once.

# %%
import maelift

result = maelift.bench(
    "quickstart",
    out="runs/bench",
    data={"path": "data/fashion-mnist", "pool": 2000, "val": 300, "near": "off"},
    labels=[50],
    seeds=[0, 1, 2],
    baseline="scratch",
    pretrain_seeds=[0],
    steps={"50": 20},
    evaluations=1,
    tuning={"max_doublings": 0},
    arms={"mae": {"pretrain": {"epochs": 2}}},
)

# %% [markdown]
# ## The verdicts
#
# Each planned comparison is one sentence: *helps* and *hurts* are said only where the difference would be unlikely if there were none, after
# correction for all comparisons of the suite. *Not resolved* is no evidence that there is no effect.

# %%
for sentence in result.verdicts:
    print("-", sentence)

# %% [markdown]
# The differences with their intervals, in points of test accuracy, as the report draws them:

# %%
result.plot()

# %% [markdown]
# ## Single runs
#
# `results.csv` has a row for each run, here as a pandas data frame (`pip install pandas`): three seeds an arm show how much luck there is in
# 50 labels.

# %%
scores = result.scores()
scores[["arm", "labels", "seed", "val_top1_percent", "test_top1_percent"]]

# %%
scores.groupby("arm")["test_top1_percent"].agg(["mean", "min", "max"])

# %% [markdown]
# ## The report
#
# `runs/bench/report.html` is one file that needs no network: the answer in one sentence, intervals, what was tuned and how, leakage between
# splits, and how many seeds would resolve what is open. [How to read and plan it](../benchmark.md).

# %%
print(result.report)
