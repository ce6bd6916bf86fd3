# %% [markdown]
# # A study in a notebook
# Masks, embeddings and rows of a finished study, here that of `pipeline demo`. Open this file as a notebook in
# VS Code, PyCharm or with jupytext, or run it as it is. Nothing here changes the work folder.

# %%
import matplotlib as mpl

mpl.use("agg")  # leave this out to see figures in a notebook
import matplotlib.pyplot as plt
import numpy as np

from pipeline import api

study = api.open_store("workdir/demo", overrides=['masks.compare=["supplied"]'])
print(study.classes, study.policies, study.views())

# %% [markdown]
# ## Images
# One row an image: its id, label, split and pseudonym, and what became of it in each stage. There is no file name.

# %%
rows = api.images(study)
print(rows.groupby(["split", "label"]).size().unstack())

# %% [markdown]
# ## How large are the masks of each class?
# `masks` is a dask array: nothing is read before `compute`, and then one chunk of the store at a time.

# %%
masks = api.masks(study)
rows["area"] = masks.mean(axis=(1, 2)).compute()
print(rows.groupby("label")["area"].describe().round(3))

# %%
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
axes.boxplot([rows.loc[rows["label"] == name, "area"] for name in study.classes], tick_labels=study.classes)
axes.set_ylabel("mask, as a share of the canvas")
figure.savefig("mask_areas.png", dpi=150)

# %% [markdown]
# ## Does the nearest training image have the same class?
# Vectors have unit length, so that the inner product is the cosine. An image that failed has NaN.

# %%
train, test = (api.embeddings(study, "masked", split=name) for name in ("train", "test"))
similarity = np.nan_to_num(test.vectors @ train.vectors.T, nan=-1)
nearest = train.rows["label"].to_numpy()[similarity.argmax(axis=1)]
right = nearest == test.rows["label"].to_numpy()
print(f"nearest neighbour: {right.sum()} of {right.size} test images right")
