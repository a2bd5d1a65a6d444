//! MLP blocks of experts, each token being given to a few of them.

use ggml::{Tensor, Type};
use kernels::MAX_GEMV_TOKENS;

use super::builder::GraphBuilder;
use super::matmul::Part;
use super::ops::{Blend, Combine, ExpertProduct, OfChosen, Operand, Route, share_scales};
use super::states::States;
use crate::weights::{Activation, Experts, Gating, Kernel, Norm, Stack, has_gemv};

/// How steep the gate of [`Gating::ClampedSwish`] is, and what it is clamped to.
const CLAMPED_SWISH: [f32; 2] = [1.702, 7.0];

impl<'g> GraphBuilder<'_, 'g> {
    /// The block of layer `il` on the residual stream `x`: `[n_embd, n]` for as many rows as `x` has. `None` if none of them are wanted.
    pub(super) fn experts(&mut self, x: Tensor<'g>, norm: &Norm, w: &Experts, il: usize) -> Option<Tensor<'g>> {
        if self.task.layout.n_wanted == 0 && self.only_wanted(il) {
            return None;
        }
        let g = self.g;
        let n = x.ne()[1];
        let mut states = States::normalised(x, norm);
        let scores = self.matmul(&mut states, &w.router, Part::All);
        self.name(scores, "ffn_moe_logits", il);
        let is_stock = w.down.kernel == Kernel::Stock;
        // Both ways give the same but for rounding; each model has the one that llama.cpp has for it.
        let scores = if w.softmax_of_chosen { scores } else { g.soft_max(scores, None, 1.0) };
        let (chosen, shares) = if is_stock { self.stock_route(scores, w) } else { self.route(scores, w) };
        let inside = self.inside_experts(&mut states, w, chosen);
        let given = self.biased_expert_product(&mut States::new(inside), &w.down, chosen);
        let out = match is_stock {
            true => self.stock_blend(given, shares),
            false => g.custom(Type::F32, [given.ne()[0], n, 1, 1], &[given, shares], Blend),
        };
        Some(self.name(out, "ffn_out", il))
    }

    /// Of scores `[n_expert, n]` the chosen experts and their weights, both `[n_used, n]`.
    fn route(&self, scores: Tensor<'g>, w: &Experts) -> (Tensor<'g>, Tensor<'g>) {
        let (g, ne) = (self.g, [w.n_used, scores.ne()[1], 1, 1]);
        let chosen = g.custom(Type::I32, ne, &[scores], Route);
        let as_shares = !w.softmax_of_chosen;
        let of_chosen = g.custom(Type::F32, ne, &[scores, chosen], OfChosen { as_shares });
        (chosen, if as_shares { of_chosen } else { g.soft_max(of_chosen, None, 1.0) })
    }

    /// The same in operations that GPUs have.
    fn stock_route(&self, scores: Tensor<'g>, w: &Experts) -> (Tensor<'g>, Tensor<'g>) {
        let (g, [n_expert, n, ..], n_used) = (self.g, scores.ne(), w.n_used);
        let row = size_of::<i32>() * n_expert;
        let chosen = g.view(g.argsort(scores, true), [n_used, n, 1, 1], [row, row * n, row * n], 0);
        let of_chosen = g.get_rows(g.reshape(scores, [1, n_expert, n, 1]), chosen);
        let of_chosen = g.reshape(of_chosen, [n_used, n, 1, 1]);
        // The sum of the largest shares is no small number.
        let shares = match w.softmax_of_chosen {
            true => g.soft_max(of_chosen, None, 1.0),
            false => g.div(of_chosen, g.sum_rows(of_chosen)),
        };
        (chosen, shares)
    }

    /// The weighted sum `[n_embd, n]` of what experts give, `[n_embd, n_used * n]`, with weights `[n_used, n]`, in operations that GPUs have.
    fn stock_blend(&self, given: Tensor<'g>, shares: Tensor<'g>) -> Tensor<'g> {
        let (g, n_embd, [n_used, n, ..]) = (self.g, given.ne()[0], shares.ne());
        let weighed = g.mul(g.reshape(given, [n_embd, n_used, n, 1]), g.reshape(shares, [1, n_used, n, 1]));
        let row = size_of::<f32>() * n_embd;
        let of_slot = |slot: usize| {
            let token = row * n_used;
            g.view(weighed, [n_embd, n, 1, 1], [token, token * n, token * n], row * slot)
        };
        let first = g.cont(of_slot(0), [n_embd, n, 1, 1]);
        (1..n_used).fold(first, |sum, slot| g.add(sum, of_slot(slot)))
    }

    /// The inputs of the last matrix of each token and each of its experts: `[n_ff, n_used * n]`.
    fn inside_experts(&mut self, states: &mut States<'_, 'g>, w: &Experts, chosen: Tensor<'g>) -> Tensor<'g> {
        let n = states.n();
        if let Gating::Activation(act) = w.gating
            && [&w.gate, &w.up].iter().all(|s| s.kernel.is_own(n) && s.bias.is_none())
        {
            return self.expert_product(states, &[&w.gate, &w.up], Combine::Gated(act), chosen);
        }
        let [gate, up] = [&w.gate, &w.up].map(|s| self.biased_expert_product(states, s, chosen));
        let [alpha, limit] = CLAMPED_SWISH;
        match w.gating {
            Gating::Activation(Activation::Silu) => self.g.swiglu(gate, up),
            Gating::Activation(Activation::Gelu) => self.g.geglu(gate, up),
            Gating::ClampedSwish => self.g.swiglu_oai(gate, up, alpha, limit),
        }
    }

    /// [`GraphBuilder::expert_product`] with one matrix of each expert, and its bias, if it has one.
    fn biased_expert_product(&mut self, states: &mut States<'_, 'g>, w: &Stack, chosen: Tensor<'g>) -> Tensor<'g> {
        let g = self.g;
        let product = self.expert_product(states, &[w], Combine::Stack, chosen);
        let Some(bias) = w.bias else { return product };
        let ([n_out, n_rows, ..], [n_used, n, ..]) = (product.ne(), chosen.ne());
        let by_token = g.reshape(product, [n_out, n_used, n, 1]);
        g.reshape(g.add_id(by_token, self.leaf(bias), chosen), [n_out, n_rows, 1, 1])
    }

    /// Products `[n_out, n_used * n]` of each token with matrices of its experts; `states` are of the tokens, or one row for each token and
    /// expert.
    fn expert_product(
        &mut self,
        states: &mut States<'_, 'g>,
        stacks: &[&Stack],
        combine: Combine,
        chosen: Tensor<'g>,
    ) -> Tensor<'g> {
        let g = self.g;
        let [n_used, n, ..] = chosen.ne();
        let n_out = stacks[0].n_out();
        if stacks.iter().all(|s| s.kernel.is_own(n)) {
            let operands: Vec<_> = stacks.iter().map(|s| Operand::all(s.rows.clone(), None)).collect();
            let is_direct = n <= MAX_GEMV_TOKENS && stacks.iter().all(|s| has_gemv(s.rows.ty()));
            let codes = self.codes(states, share_scales(&operands));
            let op = ExpertProduct { operands, combine, n_out, is_direct };
            return g.custom(Type::F32, [n_out, n_used * n, 1, 1], &[codes, chosen], op);
        }
        let floats = self.floats(states);
        let [k, n_rows, ..] = floats.ne();
        let by_token = g.reshape(floats, [k, n_rows / n, n, 1]);
        let product = g.mul_mat_id(self.leaf(stacks[0].id), by_token, chosen);
        g.reshape(product, [n_out, n_used * n, 1, 1])
    }
}
