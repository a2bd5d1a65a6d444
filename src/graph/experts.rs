//! MLP blocks of experts, each token being given to a few of them.

use ggml::{Tensor, Type};
use kernels::MAX_GEMV_TOKENS;

use super::builder::GraphBuilder;
use super::ops::{Blend, Combine, ExpertProduct, Operand, Route, Shares};
use super::states::States;
use crate::weights::{Activation, Experts, Norm, Stack, has_gemv};

impl<'g> GraphBuilder<'_, 'g> {
    /// The block of layer `il` on the residual stream `x`: `[n_embd, n]` for as many rows as `x` has. `None` if none of them are wanted.
    pub(super) fn experts(&mut self, x: Tensor<'g>, norm: &Norm, w: &Experts, il: usize) -> Option<Tensor<'g>> {
        if self.task.layout.n_wanted == 0 && self.only_wanted(il) {
            return None;
        }
        let g = self.g;
        let n = x.ne()[1];
        let mut states = States::normalised(x, norm);
        let scores = self.matmul_weight(&mut states, &w.router);
        self.name(scores, "ffn_moe_logits", il);
        let shares = g.soft_max(scores, None, 1.0);
        let chosen = g.custom(Type::I32, [w.n_used, n, 1, 1], &[shares], Route);
        let shares = g.custom(Type::F32, [w.n_used, n, 1, 1], &[shares, chosen], Shares);
        let inside = self.inside_experts(&mut states, w, chosen);
        let given = self.expert_product(&mut States::new(inside), &[&w.down], Combine::Stack, chosen);
        let out = g.custom(Type::F32, [given.ne()[0], n, 1, 1], &[given, shares], Blend);
        Some(self.name(out, "ffn_out", il))
    }

    /// `act(gate) * up` of each token and each of its experts: `[n_ff, n_used * n]`.
    fn inside_experts(&mut self, states: &mut States<'_, 'g>, w: &Experts, chosen: Tensor<'g>) -> Tensor<'g> {
        let n = states.n();
        if [&w.gate, &w.up].iter().all(|s| s.kernel.is_own(n)) {
            return self.expert_product(states, &[&w.gate, &w.up], Combine::Gated(w.act), chosen);
        }
        let [gate, up] = [&w.gate, &w.up].map(|s| self.expert_product(states, &[s], Combine::Stack, chosen));
        match w.act {
            Activation::Silu => self.g.swiglu(gate, up),
            Activation::Gelu => self.g.geglu(gate, up),
        }
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
            let operands = stacks.iter().map(|s| Operand::all(s.rows.clone(), None)).collect();
            let is_direct = n <= MAX_GEMV_TOKENS && stacks.iter().all(|s| has_gemv(s.rows.ty()));
            let op = ExpertProduct { operands, combine, n_out, is_direct };
            return g.custom(Type::F32, [n_out, n_used * n, 1, 1], &[self.codes(states), chosen], op);
        }
        let floats = self.floats(states);
        let [k, n_rows, ..] = floats.ne();
        let by_token = g.reshape(floats, [k, n_rows / n, n, 1]);
        let product = g.mul_mat_id(self.leaf(stacks[0].id), by_token, chosen);
        g.reshape(product, [n_out, n_used * n, 1, 1])
    }
}
