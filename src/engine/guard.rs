//! The guard of pruned reading: a long prompt's first piece is read both ways, and how far apart that is decides about the rest.

use std::time::Instant;

use super::divergence::divergences;
use super::pruning::{COMPARED, Ran, Way, read_whole};
use super::report::Guarded;
use super::session::{Pruned, Session};
use crate::error::Result;
use crate::graph::{Batch, Results};
use crate::prune::{self, Options, Plan, Record};
use crate::tokenizer::Token;

impl Session<'_> {
    /// Reads the first `n` tokens of `left` both ways, with some more after them, and keeps what was read densely. The prompt's rest is
    /// then to be read with the largest share left out, up to what was asked for, that costs this prompt no more than the guard allows: the
    /// curve of the model's costs is taken to be as much too low or too high everywhere as it is at the share that was tried.
    pub(super) fn guard(&mut self, left: &[Token], n: usize) -> Result<()> {
        let (piece, after) = left[..n + COMPARED].split_at(n);
        let first = self.n_past();
        let began = Instant::now();
        self.try_piece(piece, read_whole(first, n, left.len()))?;
        let pruned = self.states_after(after)?;
        let mut time = began.elapsed();
        self.rewind(first);
        let way = self.pruned.as_ref().map(|p| p.policy.dense());
        self.piece(piece, way, [0; 2], false)?;
        let dense = self.states_after(after)?;
        // These are a batch of the prompt, too.
        let record = Record { n_seq: 1, n_each: COMPARED, first: first + n, ..Default::default() };
        if let Some(pruned) = &mut self.pruned {
            pruned.policy.learn_batch(Ran { way: &Way::Dense, probe_rows: 0, is_again: false, record });
        }
        let began = Instant::now();
        let [dense, pruned] = [self.outputs(&dense)?, self.outputs(&pruned)?];
        let n_threads = self.engine.n_threads_batch;
        self.pause();
        let divergences = divergences(&dense, &pruned, self.engine.model.n_vocab(), n_threads);
        let kl = divergences.iter().map(|d| d.0).sum::<f64>() / divergences.len() as f64;
        time += began.elapsed();
        let Some(Pruned { pruning, policy, costs: Some(costs), .. }) = &mut self.pruned else {
            panic!("a guard goes by the model's costs");
        };
        let options = &pruning.options;
        let allowed = options.guard.expect("asked for");
        let expected = prune::expected(&costs.curve, options.ratio);
        // How many times as much this prompt costs as the texts that the curve was measured on.
        let factor = kl / expected.max(f64::MIN_POSITIVE);
        let ratio = prune::largest(&costs.curve, allowed / factor).min(options.ratio);
        policy.learn_guard(Guarded { kl, expected, ratio, time }, factor * prune::expected(&costs.curve, ratio));
        if ratio < options.ratio {
            let dims = pruning.plan.dims().clone();
            let shares = prune::cheapest(&costs.layers, ratio, &dims);
            let plan = Plan::new(&Options { ratio, ..options.clone() }, Some(shares), dims)?;
            policy.set_kept_share(plan.kept_share(true));
            self.replan(plan);
        }
        Ok(())
    }

    /// Reads a piece of a prompt with a probe, but for some of its tokens, and lets nobody hear of it.
    fn try_piece(&mut self, piece: &[Token], dense: [usize; 2]) -> Result<()> {
        let batch = Batch { dense, ..Batch::of_pieces(&[piece], self.n_past(), 0..0, Results::Cells) };
        self.run(&batch, Some(&Way::Probe), false)?;
        self.tokens.extend_from_slice(piece);
        Ok(())
    }

    /// Keeps so many units of each block from now on.
    pub(super) fn replan(&mut self, plan: Plan) {
        let Some(pruned) = &mut self.pruned else { return };
        if pruned.pruning.plan != plan {
            // The graphs have tensors of as many units as were planned.
            self.engine.forget_graphs();
        }
        pruned.pruning.plan = plan;
    }
}
