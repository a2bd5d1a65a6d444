//! MLP blocks.

use ggml::{Tensor, Type};

use super::builder::GraphBuilder;
use super::choice::{Choice, Probe};
use super::matmul::{Ahead, Kept, Part};
use super::states::States;
use crate::prune::{self, Block, BlockKind, MeanLeftOut, Notes, Pass, Role};
use crate::weights::{Mlp, Norm};

impl<'g> GraphBuilder<'_, 'g> {
    /// The MLP block of layer `il` on the residual stream `x`: `[n_embd, n]` for as many rows as `x` has. `None` if it adds nothing.
    pub fn mlp(&mut self, x: Tensor<'g>, norm: &Norm, w: &Mlp, il: usize) -> Option<Tensor<'g>> {
        if let Mlp::Experts(experts) = w {
            return self.experts(x, norm, experts, il);
        }
        let block = Block { il, kind: BlockKind::Mlp };
        let out = self.pruned_mlp(x, norm, w, block);
        let out = match self.dense_rows(x, block) {
            None => out?,
            Some(rows) => {
                let mut states = self.rows(&States::normalised(x, norm), rows);
                let inside = self.inside(&mut states, w, None);
                self.note_dense_rows(inside, block);
                let of_rows = self.matmul(&mut States::new(inside), w.last(), Part::All);
                self.with_rows(out, of_rows, rows, x.ne()[1], il)
            }
        };
        Some(self.name(out, "ffn_out", il))
    }

    /// The block, pruned for all rows if it is pruned.
    fn pruned_mlp(&mut self, x: Tensor<'g>, norm: &Norm, w: &Mlp, block: Block) -> Option<Tensor<'g>> {
        let mut notes = Notes::new(block);
        let mut states = States::normalised(x, norm);
        let mut left_out = None;
        let kept = match self.choice(x, block, 1) {
            Choice::Dropped => return None,
            Choice::Dense if self.task.layout.n_wanted == 0 && self.only_wanted(block.il) => return None,
            Choice::Dense => None,
            Choice::Kept(kept) => {
                if let Pass::Given(pruning) = self.task.pass
                    && pruning.fills_in()
                {
                    let probe = self.probe(x, block.il, pruning, false);
                    let (inside, _) = self.probe_inside(&mut states, w, probe);
                    left_out = Some(self.left_out(inside, &kept, block.il));
                }
                Some(kept)
            }
            Choice::Probe(pruning, probe) => {
                self.begin_probe(x, block.il);
                let (inside, ahead) = self.probe_inside(&mut states, w, probe);
                let kept = Kept { ahead, ..self.end_probe(pruning, probe, inside, 1, &mut notes) };
                left_out = pruning.fills_in().then(|| self.left_out(inside, &kept, block.il));
                Some(kept)
            }
        };
        let inside = self.inside(&mut states, w, kept.as_ref());
        match self.observed_rows.take() {
            // The last layer: its wanted rows are not the batch, so that others are observed.
            Some(rows) => {
                let observed = self.inside(&mut States::normalised(rows, norm), w, None);
                self.note(observed, None, notes);
            }
            None => self.note(inside, kept.as_ref(), notes),
        }
        let part = kept.as_ref().map_or(Part::All, |kept| Part::Columns(kept, Role::Down));
        let mut out = self.matmul(&mut States::new(inside), w.last(), part);
        if let Some(mean) = left_out {
            let stand_in = self.matmul_weight(&mut States::new(mean), &w.last().weight);
            out = self.g.add(out, stand_in);
        }
        Some(out)
    }

    /// The probe of an MLP: the inputs of its last matrix `[n_ff, n_rows]`, and what the batch has of its first product by that.
    fn probe_inside(
        &mut self,
        states: &mut States<'_, 'g>,
        w: &Mlp,
        probe: Probe<'g>,
    ) -> (Tensor<'g>, Option<Ahead<'g>>) {
        match probe.rows {
            None => (self.inside(states, w, None), None),
            Some(rows) => {
                let product = self.inside(&mut self.rows(states, rows), w, None);
                // What our kernels can take over is a gated product.
                (product, matches!(w, Mlp::Gated { .. }).then_some(Ahead { product, rows }))
            }
        }
    }

    /// What stands in for the channels that are left out: their means over the probe's states `[n_ff, n_rows]`, F32 `[n_ff, 1]`.
    fn left_out(&self, states: Tensor<'g>, kept: &Kept<'_, 'g>, il: usize) -> Tensor<'g> {
        if self.is_stock(il) {
            return prune::stock_left_out(self.g, states, kept.ids);
        }
        self.g.custom(Type::F32, [states.ne()[0], 1, 1, 1], &[states, kept.ids], MeanLeftOut)
    }

    /// The inputs of an MLP's last matrix, `[n_ff, n]`; or of the kept channels only.
    fn inside(&mut self, states: &mut States<'_, 'g>, w: &Mlp, kept: Option<&Kept<'_, 'g>>) -> Tensor<'g> {
        match w {
            Mlp::Gated { gate, up, act, .. } => self.matmul_gated(states, [gate, up], *act, kept),
            Mlp::Plain { up, .. } => {
                let part = kept.map_or(Part::All, |kept| Part::Rows(kept, Role::Up));
                let product = self.matmul(states, up, part);
                self.g.relu(product)
            }
            Mlp::Experts(_) => unreachable!("a block of another kind"),
        }
    }
}
