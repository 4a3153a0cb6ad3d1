# %% [markdown]
# # benchmark

# %%
print(1)
