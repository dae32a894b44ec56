"""A small JAX network with cnorm's norms, trained by gradient descent under jit."""

import jax
import jax.numpy as jnp

import cnorm.interop.jax as cj

key = jax.random.PRNGKey(0)
x = jax.random.normal(key, (256, 8)) * 100 + 1000
y = jnp.sin(x[:, :1] / 100)
w = {"in": jax.random.normal(key, (8, 64)) / 3, "out": jnp.zeros((64, 1)), "scale": jnp.ones(64)}


@jax.jit
def loss(w):
    h = cj.batch_norm(x, training=True) @ w["in"]
    return ((jax.nn.gelu(cj.rms_norm(h, 64, w["scale"])) @ w["out"] - y) ** 2).mean()


step = jax.jit(lambda w: jax.tree.map(lambda p, g: p - 0.05 * g, w, jax.grad(loss)(w)))
print(f"loss before: {loss(w):.3f}")
for _ in range(200):
    w = step(w)
print(f"loss after:  {loss(w):.3f}")
