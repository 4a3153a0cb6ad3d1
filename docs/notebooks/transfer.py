# %% [markdown]
# # transfer

# %%
print(1)
