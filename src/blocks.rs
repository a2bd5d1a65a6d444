//! Pure graph functions: norm, linear, rotary attention, MLP. They know shapes, not layers or files.

use ggml::{Builder, Rope, Tensor};

/// A weight matrix `[n_in, n_out]` with an optional bias `[n_out]`.
#[derive(Debug, Clone, Copy)]
pub struct Linear<'g> {
    /// The matrix.
    pub weight: Tensor<'g>,
    /// The bias.
    pub bias: Option<Tensor<'g>>,
}

impl<'g> Linear<'g> {
    /// `[n_out, n_tokens]`: `W x + b`.
    pub fn apply(&self, g: &Builder<'g>, x: Tensor<'g>) -> Tensor<'g> {
        let y = g.mul_mat(self.weight, x);
        match self.bias {
            Some(b) => g.add(y, b),
            None => y,
        }
    }
}

/// RMS norm with a gain: `x / rms(x) * weight`, row by row.
pub fn norm<'g>(g: &Builder<'g>, x: Tensor<'g>, weight: Tensor<'g>, eps: f32) -> Tensor<'g> {
    g.mul(g.rms_norm(x, eps), weight)
}

/// Queries `[n_embd_head, n_head, n_tokens]`, keys and values `[n_embd_head, n_head_kv, n_tokens]`.
#[derive(Debug, Clone, Copy)]
pub struct Qkv<'g> {
    /// Queries, positions embedded.
    pub q: Tensor<'g>,
    /// Keys, positions embedded.
    pub k: Tensor<'g>,
    /// Values.
    pub v: Tensor<'g>,
}

/// Queries, keys and values by head, with the positions `pos` `[n_tokens]` embedded, of products `[n_embd_head * heads, n_tokens]`
/// whose rows are contiguous.
pub fn qkv<'g>(
    g: &Builder<'g>,
    products: [Tensor<'g>; 3],
    n_embd_head: usize,
    pos: Tensor<'g>,
    rope_freqs: Option<Tensor<'g>>,
    rope: &Rope,
) -> Qkv<'g> {
    let [q, k, v] = products.map(|t| {
        let [n, n_tokens, ..] = t.ne();
        let (head, token) = (n_embd_head * 4, t.nb()[1]);
        g.view(t, [n_embd_head, n / n_embd_head, n_tokens, 1], [head, token, token * n_tokens], 0)
    });
    Qkv { q: g.rope(q, pos, rope_freqs, rope), k: g.rope(k, pos, rope_freqs, rope), v }
}

/// Scaled dot-product attention: `softmax(q k^T * scale + mask) v`, as `[n_embd_head * n_head, n_tokens]`.
///
/// `q` is `[n_embd_head, n_head, n_tokens]` over all sequences; `k` is `[n_embd_head, n_head_kv, n_kv, n_seq]`; `v` is the
/// same (with flash attention) or `[n_kv, n_head_kv, n_embd_head, n_seq]` (without); `mask` is
/// `[n_kv, n_tokens / n_seq, 1, n_seq]`, F16 with flash attention and F32 without.
pub fn attention<'g>(
    g: &Builder<'g>,
    q: Tensor<'g>,
    k: Tensor<'g>,
    v: Tensor<'g>,
    mask: Tensor<'g>,
    scale: f32,
    flash_attn: bool,
) -> Tensor<'g> {
    let n_seq = k.ne()[3];
    let [n_embd_head, n_head, n_tokens, _] = q.ne();
    let nb = q.nb();
    let n_each = n_tokens / n_seq;
    let q = g.view(q, [n_embd_head, n_head, n_each, n_seq], [nb[1], nb[2], nb[2] * n_each], 0);
    let [q, k, v] = [q, k, v].map(|t| g.permute(t, [0, 2, 1, 3]));
    if flash_attn {
        let cur = g.flash_attn(q, k, v, mask, scale);
        return g.reshape(cur, [n_embd_head * n_head, n_tokens, 1, 1]);
    }
    let kq = g.mul_mat(k, q);
    g.accumulate_in_f32(kq);
    let kq = g.soft_max(kq, mask, scale);
    let kqv = g.mul_mat(v, kq);
    g.cont(g.permute(kqv, [0, 2, 1, 3]), [n_embd_head * n_head, n_tokens, 1, 1])
}
