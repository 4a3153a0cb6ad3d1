# %% [markdown]
# # pretrain

# %%
print(1)
