//! How long things take that pruned answers must pay for, measured on this model here.

use std::time::Instant;

use super::core::{Engine, Size};
use super::pruning::AnswerCosts;
use crate::error::Result;
use crate::graph::{Batch, Layout, Results, Row};
use crate::prune::{Block, BlockKind, LeftOut, Masks, Pass, Plan, Pruning, Reduced};

/// MLPs whose reduced weights are made for a measurement.
const SAMPLE: usize = 4;

/// The MLPs that run on a part of their channels, with how many these are.
fn pruned_mlps(plan: &Plan) -> impl Iterator<Item = (Block, usize)> {
    let mlps = plan.blocks().filter(|b| b.kind == BlockKind::Mlp);
    mlps.filter_map(|b| Some((b, plan.kept(b).filter(|&n| n > 0)?)))
}

/// What making the reduced weights of a few MLPs takes, and what a token then takes in one of them; `None` if none has a mask.
pub fn answer_costs(engine: &mut Engine, pruning: &Pruning, masks: &Masks) -> Result<Option<AnswerCosts>> {
    let plan = pruning.answer_plan.as_ref().expect("answers are pruned");
    let some = pruned_mlps(plan).filter_map(|(b, _)| Some((b, masks.get(&b)?.clone())));
    let some: Masks = some.take(SAMPLE).collect();
    let Some((&block, _)) = some.first_key_value() else { return Ok(None) };
    let (model, n_threads) = (engine.model, engine.n_threads_batch);
    let make = || {
        let start = Instant::now();
        let reduced = Reduced::new(model.layers(), model.placement(), &some, &LeftOut::new(), n_threads)?;
        Ok::<_, crate::error::Error>((start.elapsed().as_secs_f64(), reduced))
    };
    // Twice, as memory that is used for the first time may take many times as long.
    let first = make()?.0;
    let (second, reduced) = make()?;
    let reduce = first.min(second) / some.len() as f64;
    let dense = time_mlp(engine, block.il, 1, Pass::Dense)?;
    let token = time_mlp(engine, block.il, 1, Pass::Reduced(&reduced))?;
    // The graph refers to what ends here.
    engine.forget_graphs();
    Ok(Some(AnswerCosts { reduce, dense, reduced: token }))
}

/// Least time in seconds of a few runs of one layer's MLP with `n` tokens.
fn time_mlp(engine: &mut Engine, il: usize, n: usize, pass: Pass) -> Result<f64> {
    // Position 0: every history by position has it, however short its calibration was.
    let row = Row { token: 0, pos: 0, seq: 0, wanted: true };
    let batch = Batch { rows: vec![row; n], is_whole: true, ..Batch::of_pieces(&[], 0, 0..0, Results::States) };
    let layout = Layout::largest(1, n, n, n, Results::States);
    let (graph, (input, slots)) = engine.model.mlp_graph(&engine.cache, &layout, pass, &engine.clock, il);
    let states: Vec<f32> = (0..n * engine.model.hparams().n_embd).map(|i| (i as f32).sin()).collect();
    let n_threads = if n > 1 { engine.n_threads_batch } else { engine.n_threads };
    let size = Size::of(n);
    engine.load(size, graph)?;
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        engine.set_loaded(size, (input, &states), &slots, &batch, &layout)?;
        let start = Instant::now();
        engine.compute(size, n_threads)?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}
