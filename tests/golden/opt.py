"""The reference implementation, extended to OPT: tests/golden/make uses it.

Which units are kept is decided by the reference's own code (probe, energies, fusion, scores, history, rounding); here is
only what OPT computes otherwise:

- embeddings are the sum of a token's and a position's, so that a probe's rows have their positions from there;
- norms are LayerNorms with a bias, the MLP is `fc2(relu(fc1 x))`, and every matrix has a bias;
- biases of q, k, v and fc1 go with their rows; those of out_proj and fc2 are added once, whole;
- keys and values of heads that are left out are not made, which changes no sum, as each head has its own;
- FLAP weighs a head against a channel of two matrices, not of three.

Where a method's code says nothing of OPT, it is as for LLaMA: FLAP's mean inputs pass the matrix without its bias, since the bias
is added in any case.
"""

import numpy as np
from gguf import GGUFReader, dequantize


def extend(reference):
    """The classes of a model and of its pruning, by the reference's module."""

    class Opt(reference.Llama):
        def __init__(self, path):
            r = GGUFReader(path)
            kv = {k: f.contents() for k, f in r.fields.items()}
            shape = lambda t: [int(n) for n in t.shape[::-1]]
            self.W = {t.name: dequantize(t.data, t.tensor_type).astype(np.float32).reshape(shape(t)) for t in r.tensors}
            self.n_layer, self.n_embd, self.n_ff = (
                kv[f"opt.{k}"] for k in ("block_count", "embedding_length", "feed_forward_length")
            )
            self.n_head = self.n_head_kv = kv["opt.attention.head_count"]
            self.d_head = self.n_embd // self.n_head
            self.eps = kv["opt.attention.layer_norm_epsilon"]
            pruned = {n: w for n, w in self.W.items() if n.endswith(("ffn_down.weight", "attn_output.weight"))}
            self.w4 = {n: np.sqrt((w**4).sum(0)) for n, w in pruned.items()}
            self.w2 = {n: (w**2).sum(0) for n, w in pruned.items()}
            self.w1 = {n: np.abs(w).sum(0) for n, w in pruned.items()}

        def bias(self, name):
            return self.W[name.replace(".weight", ".bias")]

        def norm(self, x, name):
            x = x - x.mean(-1, keepdims=True)
            return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * self.W[name] + self.bias(name)

        def attention(self, h, il, pos, heads):
            B, T, _ = h.shape
            rows = (heads[:, None] * self.d_head + np.arange(self.d_head)).reshape(-1)

            def project(part):
                name = f"blk.{il}.attn_{part}.weight"
                y = h @ self.W[name][rows].T + self.bias(name)[rows]
                return y.reshape(B, T, len(heads), self.d_head).transpose(0, 2, 1, 3)

            q, k, v = (project(part) for part in "qkv")
            s = q * self.d_head**-0.5 @ k.transpose(0, 1, 3, 2) + np.triu(np.full((T, T), -np.inf, np.float32), 1)
            s = np.exp(s - s.max(-1, keepdims=True))
            return (s / s.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(B, T, -1)

        def ffn_mid(self, h, il, rows):
            name = f"blk.{il}.ffn_up.weight"
            return np.maximum(h @ self.W[name][rows].T + self.bias(name)[rows], 0)

    class OptPruner(reference.Pruner):
        def flap_shares(self, T):
            m, a = self.m, self.a
            head_cost = (4 * T * m.n_embd * m.d_head + 2 * T * T * m.d_head) / (2 * T * m.n_embd)
            units = {}
            for name, v in self.var.items():
                if int(name.split(".")[1]) < a.skip:
                    continue
                score = v.sum(0) * m.w2[name]
                z = (score - score.mean()) / score.std(ddof=1)
                attn = name.endswith("attn_output.weight")
                units[name] = (z.reshape(m.n_head, -1).mean(1), head_cost) if attn else (z, 1.0)
            pool = np.concatenate([z for z, _ in units.values()])
            cost = np.concatenate([np.full(len(z), c) for z, c in units.values()])
            order = np.argsort(pool, kind="stable")
            cum = np.cumsum(cost[order])
            threshold = pool[order][np.searchsorted(cum, cum[-1] * self.ratio, side="right")]
            self.share = {name: float((z <= threshold).mean()) for name, (z, _) in units.items()}

        def run(self, tok, calibrating=False):
            m, a = self.m, self.a
            self.n_calibrating = calibrating
            B, T = tok.shape
            pos = np.arange(T)
            x = m.W["token_embd.weight"][tok] + m.W["position_embd.weight"][pos]
            for il in range(m.n_layer):
                for attn in (True, False):
                    norm, last = ("attn_norm", "attn_output") if attn else ("ffn_norm", "ffn_down")
                    name = f"blk.{il}.{last}.weight"
                    normed = m.norm(x, f"blk.{il}.{norm}.weight")
                    kept = self.keep(name, il, x, normed, attn, pos)
                    if attn:
                        z = m.attention(normed, il, pos, kept)
                        cols = (kept[:, None] * m.d_head + np.arange(m.d_head)).reshape(-1)
                    else:
                        z, cols = m.ffn_mid(normed, il, kept), kept
                    if calibrating:
                        self.calibrate(name, z)
                    elif il >= a.skip:
                        self.ema(name, z, cols)
                    y = z @ m.W[name][:, cols].T + m.bias(name)
                    if a.method.startswith("flap") and not calibrating and len(cols) < m.W[name].shape[1]:
                        mu = self.mu[name].mean(0).copy()
                        mu[cols] = 0
                        y = y + m.W[name] @ mu
                    x = x + y.astype(np.float32)
            if calibrating:
                self.n += B
            return x

    return Opt, OptPruner
