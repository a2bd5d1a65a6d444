//! What a block keeps: where the pass enters a graph.

use ggml::{Tensor, Type};

use super::batch::Pieces;
use super::builder::GraphBuilder;
use super::inputs::{Input, Rows};
use super::matmul::Kept;
use super::ops::{Mark, PutRows};
use crate::prune::{self, Block, Notes, Pass, ProbeShape, Pruning, Reduced};

/// How a block runs.
#[derive(Debug, Clone, Copy)]
pub enum Choice<'a, 'g> {
    /// On all its units
    Dense,
    /// On units that its own probe chooses: the caller first runs the probe's rows through the block
    Probe(&'a Pruning, Probe<'g>),
    /// On these
    Kept(Kept<'a, 'g>),
    /// Not at all: it adds nothing to the residual stream
    Dropped,
}

/// The rows of a batch that run ahead.
#[derive(Debug, Clone, Copy)]
pub struct Probe<'g> {
    /// How many they are
    pub shape: ProbeShape,
    /// I32 `[n_rows]`: their numbers; `None` if they are all rows
    pub rows: Option<Tensor<'g>>,
    /// I32 `[n_rows]`: their positions
    pub pos: Tensor<'g>,
    observe: bool,
}

impl<'a, 'g> GraphBuilder<'a, 'g> {
    /// How a block with units of this `width` that gets the residual stream `x` runs.
    pub(super) fn choice(&mut self, x: Tensor<'g>, block: Block, width: usize) -> Choice<'a, 'g> {
        let is_partial = self.is_partial(x, block);
        match self.task.pass {
            Pass::Dense | Pass::Observe(_) | Pass::Calibrate { .. } => Choice::Dense,
            Pass::Reduced(reduced) => self.reduced(reduced, block, width),
            Pass::Probe { .. } | Pass::Given(_) if is_partial => Choice::Dense,
            Pass::Given(pruning) => match pruning.plan.kept(block) {
                None => Choice::Dense,
                Some(0) => Choice::Dropped,
                Some(n) => {
                    let ids = self.inputs.get(Input::Kept(block, n));
                    Choice::Kept(Kept { ids, n, width, block, reduced: None, ahead: None })
                }
            },
            Pass::Probe { pruning, observe } => match pruning.plan.kept(block) {
                None => Choice::Dense,
                Some(0) => Choice::Dropped,
                Some(_) => Choice::Probe(pruning, self.probe(x, block.il, pruning, observe)),
            },
        }
    }

    /// Whether the block runs on some rows only: then they are not the batch that masks are for.
    fn is_partial(&self, x: Tensor<'g>, block: Block) -> bool {
        self.only_wanted(block.il) || x.ne()[1] < self.task.layout.n_tokens()
    }

    /// The batch's rows that run on all weights, if the block that gets the residual stream `x` is pruned for the others.
    pub(super) fn dense_rows(&mut self, x: Tensor<'g>, block: Block) -> Option<Tensor<'g>> {
        let (Pass::Probe { pruning, .. } | Pass::Given(pruning)) = self.task.pass else { return None };
        let n_dense = self.task.layout.n_dense();
        let are_there = n_dense > 0 && !self.is_partial(x, block) && pruning.plan.kept(block).is_some();
        are_there.then(|| self.inputs.get(Input::Numbers(Rows::Dense)))
    }

    /// Notes what the pass wants to know of the dense rows' states in a block that is dropped for the others.
    pub(super) fn note_dense_rows(&mut self, states: Tensor<'g>, block: Block) {
        if let Pass::Probe { pruning, .. } = self.task.pass
            && pruning.plan.kept(block) == Some(0)
        {
            self.note(states, None, Notes::new(block));
        }
    }

    /// What a block of layer `il` adds to `n` rows: `out` `[n_embd, n]`, or nothing, but for the dense `rows` I32 `[n_dense]`, which have `of_rows`
    /// `[n_embd, n_dense]`.
    pub(super) fn with_rows(
        &self,
        out: Option<Tensor<'g>>,
        of_rows: Tensor<'g>,
        rows: Tensor<'g>,
        n: usize,
        il: usize,
    ) -> Tensor<'g> {
        if self.is_stock(il) {
            let all = out.unwrap_or_else(|| self.g.zeros([of_rows.ne()[0], n, 1, 1]));
            return self.g.set_rows(all, of_rows, rows);
        }
        let sources: Vec<Tensor<'g>> = [of_rows, rows].into_iter().chain(out).collect();
        self.g.custom(Type::F32, [of_rows.ne()[0], n, 1, 1], &sources, PutRows)
    }

    fn reduced(&self, reduced: &'a Reduced, block: Block, width: usize) -> Choice<'a, 'g> {
        match reduced.units(block) {
            None => Choice::Dense,
            Some(units) => {
                let (ids, n) = (self.leaf(units.ids), units.n);
                Choice::Kept(Kept { ids, n, width, block, reduced: Some(reduced), ahead: None })
            }
        }
    }

    /// Whether a layer makes nothing but keys and values of rows that are not wanted: the last one, unless all of its rows are to be
    /// observed. Where no rows are wanted, that holds for the last layer that makes keys and values; the layers
    /// after it, which read those of others, make nothing at all.
    pub(super) fn only_wanted(&self, il: usize) -> bool {
        let layout = self.task.layout;
        let observes = match self.task.pass {
            Pass::Observe(_) | Pass::Probe { observe: true, .. } | Pass::Calibrate { .. } => true,
            // A replay computes the last layer for as many rows as the recorded run did, so that both round alike.
            Pass::Given(pruning) => pruning.answer_plan.is_some(),
            _ => false,
        };
        let is_last = il + 1 == self.task.n_layer || layout.n_wanted == 0 && il >= self.task.cache.last_own();
        is_last && layout.n_wanted < layout.n_tokens() && !observes
    }

    /// Stage pick: the probe of a block of layer `il` that gets the residual stream `x`.
    pub(super) fn probe(&mut self, x: Tensor<'g>, il: usize, pruning: &Pruning, observe: bool) -> Probe<'g> {
        let layout = self.task.layout;
        let (n_seq, n_each) = layout.samples();
        let shape = pruning.probe(n_seq, n_each - layout.n_dense());
        let rows = if pruning.probes_all() && layout.n_dense() == 0 {
            None
        } else if pruning.picks_by_residual() {
            Some(prune::pick(self.g, x, shape, n_seq, layout.dense, self.is_stock(il)))
        } else {
            Some(self.inputs.get(Input::ProbeRows(shape)))
        };
        let positions = self.inputs.get(Input::Positions);
        let pos = rows.map_or(positions, |rows| self.positions_of(positions, rows));
        Probe { shape, rows, pos, observe }
    }

    /// From here on what is built is a probe's; its time begins once `x` is computed.
    pub(super) fn begin_probe(&mut self, x: Tensor<'g>, il: usize) {
        self.mark(x, il, true);
        self.is_probing = true;
    }

    /// Stages score and select: ends the probe, whose states `[n_channels, n_rows]` are the inputs of the block's last matrix, with the
    /// units to keep.
    pub(super) fn end_probe(
        &mut self,
        pruning: &Pruning,
        probe: Probe<'g>,
        states: Tensor<'g>,
        width: usize,
        notes: &mut Notes,
    ) -> Kept<'a, 'g> {
        let Probe { shape, pos, observe, .. } = probe;
        let text = self.probes_text(probe);
        let ids = prune::choose(self.g, pruning, states, (pos, text), shape, observe, notes);
        self.is_probing = false;
        self.mark(ids, notes.block.il, false);
        Kept { ids, n: ids.ne()[0], width, block: notes.block, reduced: None, ahead: None }
    }

    /// [`GraphBuilder::text`] of the probe's rows.
    pub(super) fn probes_text(&mut self, probe: Probe<'g>) -> Option<Tensor<'g>> {
        let text = self.text()?;
        Some(probe.rows.map_or(text, |rows| self.g.get_rows(text, rows)))
    }

    /// Starts or ends the time of a probe, once `after` is computed. Those of blocks that a GPU computes are not timed: it would wait for the
    /// host, which has the clock.
    fn mark(&self, after: Tensor<'g>, il: usize, is_start: bool) {
        if self.is_stock(il) {
            return;
        }
        let op = Mark { clock: self.task.clock.clone(), is_start };
        self.g.expand(self.g.custom(Type::F32, [1, 1, 1, 1], &[after], op));
    }

    /// Positions of rows of the batch: I32 `[n_rows]`.
    pub(super) fn positions_of(&self, positions: Tensor<'g>, rows: Tensor<'g>) -> Tensor<'g> {
        let g = self.g;
        let column = g.reshape(positions, [1, positions.ne()[0], 1, 1]);
        g.reshape(g.get_rows(column, rows), [rows.ne()[0], 1, 1, 1])
    }

    /// The rows that are observed where the last layer's MLP runs on the wanted rows only; they are those of an even probe. `None` if
    /// nothing is observed, or the probe has other rows.
    pub(super) fn rows_to_observe(&mut self) -> Option<Tensor<'g>> {
        let pruning = match self.task.pass {
            Pass::Observe(pruning) => pruning,
            Pass::Probe { pruning, observe: true } if !pruning.picks_by_residual() && !pruning.probes_all() => pruning,
            _ => return None,
        };
        let (n_seq, n_each) = self.task.layout.samples();
        Some(self.inputs.get(Input::ProbeRows(pruning.probe(n_seq, n_each - self.task.layout.n_dense()))))
    }

    /// Notes what the pass wants to know of the inputs `states` of a block's last matrix.
    pub(super) fn note(&mut self, states: Tensor<'g>, kept: Option<&Kept<'a, 'g>>, mut notes: Notes) {
        let n_seq = match self.task.layout.pieces {
            Pieces::Equal { n_seq, .. } => n_seq,
            // What is noted sample by sample is of equal pieces.
            Pieces::Any(_) => 1,
        };
        let text = self.text();
        let is_stock = self.is_stock(notes.block.il);
        if prune::note(self.g, self.task.pass, (states, text), n_seq, kept.is_some(), is_stock, &mut notes) {
            self.notes.push(notes);
        }
    }
}
