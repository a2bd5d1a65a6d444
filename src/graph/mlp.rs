//! MLP blocks.

use ggml::Tensor;

use super::builder::GraphBuilder;
use super::choice::Choice;
use super::matmul::{Ahead, Kept, Part};
use super::states::States;
use crate::prune::{Block, BlockKind, Notes, Role};
use crate::weights::{Mlp, Norm};

impl<'g> GraphBuilder<'_, 'g> {
    /// The MLP block of layer `il` on the residual stream `x`: `[n_embd, n]` for as many rows as `x` has. `None` if it adds nothing.
    pub fn mlp(&mut self, x: Tensor<'g>, norm: &Norm, w: &Mlp, il: usize) -> Option<Tensor<'g>> {
        let block = Block { il, kind: BlockKind::Mlp };
        let mut notes = Notes::new(block);
        let mut states = States::normalised(x, norm);
        let kept = match self.choice(x, block, 1) {
            Choice::Dropped => return None,
            Choice::Dense if self.task.layout.n_wanted == 0 && self.only_wanted(il) => return None,
            Choice::Dense => None,
            Choice::Kept(kept) => Some(kept),
            Choice::Probe(pruning, probe) => {
                self.begin_probe(x);
                let (inside, ahead) = match probe.rows {
                    None => (self.inside(&mut states, w, None), None),
                    Some(rows) => {
                        let product = self.inside(&mut self.rows(&states, rows), w, None);
                        (product, Some(Ahead { product, rows }))
                    }
                };
                Some(Kept { ahead, ..self.end_probe(pruning, probe, inside, 1, &mut notes) })
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
        let out = self.matmul(&mut States::new(inside), w.last(), part);
        Some(self.name(out, "ffn_out", il))
    }

    /// The inputs of an MLP's last matrix, `[n_ff, n]`; or of the kept channels only.
    fn inside(&mut self, states: &mut States<'_, 'g>, w: &Mlp, kept: Option<&Kept<'_, 'g>>) -> Tensor<'g> {
        let Mlp::Gated { gate, up, act, .. } = w;
        self.matmul_gated(states, [gate, up], *act, kept)
    }
}
