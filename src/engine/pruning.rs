//! The policy of pruning: what to do next with a prompt or an answer.
//!
//! A state machine without a model and without a clock. Before each piece of a prompt and each token of an answer the session asks; what it
//! is told to run or to measure it does, and tells what came of it. So the rules can be tested with any figures.

use std::time::Duration;

use super::core::UNEQUAL;
use super::report::{BreakEven, Guarded, Report};
use crate::error::{Error, Result};
use crate::prune::{Masks, Plan, Record, Scale};

/// Tokens of an answer that are looked at again, so that masks follow it.
pub const REFRESH: usize = 64;

/// First tokens of a text that are read whole: all later ones attend to them.
pub const SINKS: usize = 4;

/// Tokens at the end of a prompt that are read whole: the question, and what the answer follows on.
pub const TAIL: usize = 32;

/// Tokens of a prompt that are read whole: the first and the last.
pub const READ_WHOLE: usize = SINKS + TAIL;

/// Tokens after a piece by which a guard compares both readings of it.
pub const COMPARED: usize = 2 * TAIL;

/// How much more must have been observed before masks for answers are made again.
const MUCH_MORE: f64 = 1.25;

/// How a batch is to run.
#[derive(Debug, Clone, PartialEq)]
pub enum Way {
    /// On all weights
    Dense,
    /// On all weights, and what it makes use of is observed
    Observe,
    /// With a probe of each block
    Probe,
    /// On the units of this record
    Given(Record),
    /// On the reduced weights
    Reduced,
}

/// What to do before the next token of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum AskAnswer {
    /// Measure what reduced weights cost and save, and tell [`Policy::learn_answer_times`]
    Measure,
    /// Run the last [`REFRESH`] tokens again, dense, and observe what they make use of
    LookBack,
    /// Make reduced weights of these masks, or else of those of what was observed, and tell [`Policy::learn_reduced`]
    Reduce(Option<Masks>),
    /// Run it
    Run(Way),
}

/// Seconds that concern one MLP of an answer.
#[derive(Debug, Clone, Copy)]
pub struct AnswerCosts {
    /// Making its reduced weights
    pub reduce: f64,
    /// A token on all weights
    pub dense: f64,
    /// A token on the reduced ones
    pub reduced: f64,
}

impl AnswerCosts {
    /// From how many tokens on reduced weights pay.
    fn break_even(&self) -> BreakEven {
        let saved = self.dense - self.reduced;
        if saved <= 0.0 {
            return BreakEven::Never;
        }
        BreakEven::From((self.reduce / saved).ceil().min(1e9) as usize)
    }
}

/// Where masks come from.
#[derive(Debug)]
enum Source {
    Probe,
    Fixed,
    /// Records of another run that are still to come
    Replay(std::vec::IntoIter<Record>),
}

/// A batch of a text that ran.
#[derive(Debug)]
pub struct Ran<'a> {
    /// How
    pub way: &'a Way,
    /// Rows that ran ahead, if there was a probe
    pub probe_rows: usize,
    /// Whether these tokens had run before: a look back is no batch of the text
    pub is_again: bool,
    /// What it kept, and by which scores
    pub record: Record,
}

/// The reduced weights that an answer runs on at present.
#[derive(Debug)]
struct InUse {
    /// Rows that had been observed when they were made
    observed: f64,
    /// Tokens that were decoded since
    n_decoded: usize,
    looked_back: bool,
}

/// The rules, and what they have come to so far.
#[derive(Debug)]
pub struct Policy {
    source: Source,
    /// Answers are pruned, too
    of_answers: bool,
    /// Whether the prompt that is read is long enough, once that is decided
    is_long: Option<bool>,
    /// Which answers are pruned; `None` before it is measured. Which prompts are is in the report.
    answer_break_even: Option<BreakEven>,
    /// The session has reduced weights exactly while this is something
    in_use: Option<InUse>,
    /// Batches so far, if they are to be dumped
    records: Option<Vec<Record>>,
    report: Report,
}

impl Policy {
    /// Masks come from probes. Prompts for which pruning does not pay run dense. So do answers that are shorter than `least`, or than what is
    /// measured where it is `None`; and all of them unless `of_answers`.
    pub fn probe(prompts: BreakEven, least: Option<usize>, of_answers: bool, kept_share: f64) -> Policy {
        Policy::new(Source::Probe, prompts, least, of_answers, kept_share)
    }

    /// Masks are fixed.
    pub fn fixed(of_answers: bool, kept_share: f64) -> Policy {
        let mut policy = Policy::new(Source::Fixed, BreakEven::From(2), None, of_answers, kept_share);
        policy.report.is_fixed = true;
        policy
    }

    /// Masks are those of another run.
    pub fn replay(records: Vec<Record>, kept_share: f64) -> Policy {
        Policy::new(Source::Replay(records.into_iter()), BreakEven::From(2), None, true, kept_share)
    }

    fn new(source: Source, break_even: BreakEven, answers: Option<usize>, of_answers: bool, kept_share: f64) -> Policy {
        let report = Report { kept: kept_share, break_even, ..Default::default() };
        let answer_break_even = answers.map(BreakEven::From);
        Policy { source, of_answers, is_long: None, answer_break_even, in_use: None, records: None, report }
    }

    /// Keeps a record of each batch from now on.
    pub fn keep_records(&mut self) {
        self.records.get_or_insert_default();
    }

    /// Whether answers are pruned, or may be.
    pub fn prunes_answers(&self) -> bool {
        self.of_answers
    }

    /// The records so far, if they are kept.
    pub fn records(&self) -> Option<&[Record]> {
        self.records.as_deref()
    }

    /// What pruning did lately.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The share of the blocks' weights that batches run on from now on.
    pub fn set_kept_share(&mut self, share: f64) {
        self.report.kept = share;
    }

    /// Divergences are put in words by this scale from now on.
    pub fn set_scale(&mut self, scale: Scale) {
        self.report.scale = scale;
    }

    /// Hears what the guard found in a prompt's first tokens, and what the rest is expected to cost.
    pub fn learn_guard(&mut self, guarded: Guarded, expected_kl: f64) {
        if guarded.ratio == 0.0 {
            self.is_long = Some(false);
        }
        self.report.expected_kl = Some(expected_kl);
        self.report.guarded = Some(guarded);
    }

    /// Another prompt begins: what is reported is of it. Its batches run on this share of the blocks' weights, and that is expected to
    /// cost so much, if it is known.
    pub fn begin_prompt(&mut self, kept_share: f64, expected_kl: Option<f64>) {
        self.report = Report { kept: kept_share, expected_kl, ..self.report.next() };
        self.is_long = None;
    }

    /// Another text begins, of which nothing was observed: reduced weights that were made for the last one are gone.
    pub fn begin_text(&mut self) {
        self.in_use = None;
    }

    /// How what is not pruned runs: observed, if masks for answers are to be chosen by it.
    pub fn dense(&self) -> Way {
        match self.source {
            Source::Probe if self.of_answers => Way::Observe,
            _ => Way::Dense,
        }
    }

    /// How the next tokens of a prompt are to run, and how many, if `n` are left, from position `n_past` on; at most `n_ubatch` run at once.
    /// [`crate::error::Kind::Malformed`] if the records of a replay are at their end.
    ///
    /// The first [`SINKS`] tokens of a text and the last [`TAIL`] of a prompt are read whole: as [`read_whole`] says, where the piece has a
    /// probe, and in pieces of their own otherwise.
    pub fn read(&mut self, n_past: usize, n: usize, n_ubatch: usize) -> Result<(Way, usize)> {
        let way = match &mut self.source {
            Source::Fixed => Way::Reduced,
            Source::Replay(records) => {
                let record = next_batch(records)?;
                let n_each = record.n_each.clamp(1, n_ubatch).min(n);
                return Ok((Way::Given(record), n_each));
            }
            Source::Probe => Way::Probe,
        };
        let pays = self.report.break_even.pays(n);
        let is_long = match self.is_long {
            Some(is_long) => is_long,
            // One token has no probe.
            None if n < TAIL + 2 => {
                self.report.is_too_short = pays;
                false
            }
            None => pays,
        };
        self.is_long = Some(is_long);
        if !is_long || n < TAIL + 2 {
            return Ok((self.dense(), n.min(n_ubatch)));
        }
        // Batches of about equal length, so that none has a probe much worse than the others.
        let piece = |n: usize| n.div_ceil(n.div_ceil(n_ubatch));
        if way == Way::Probe {
            let n_piece = piece(n);
            let n_dense: usize = read_whole(n_past, n_piece, n).iter().sum();
            // One token has no probe.
            let way = if n_piece < n_dense + 2 { self.dense() } else { way };
            return Ok((way, n_piece));
        }
        // Reduced weights serve all tokens of a batch.
        if n_past < SINKS {
            return Ok((self.dense(), (SINKS - n_past).min(n_ubatch)));
        }
        Ok((way, piece(n - TAIL)))
    }

    /// How a batch of texts that are scored is to run, `n_seq` side by side, `n_each` tokens of each.
    /// [`crate::error::Kind::Malformed`] if the records of a replay are at their end.
    pub fn score(&mut self, n_seq: usize, n_each: usize) -> Result<Way> {
        Ok(match &mut self.source {
            Source::Fixed => Way::Reduced,
            Source::Replay(records) => Way::Given(next_batch(records)?),
            Source::Probe if n_seq * n_each < 2 || !self.report.break_even.pays(n_seq * n_each) => Way::Dense,
            Source::Probe => Way::Probe,
        })
    }

    /// What to do before the next token of an answer, at position `n_past`, to be followed by at most `n_expected` with itself; `observed`
    /// are the rows that were observed of the text so far.
    ///
    /// Reduced weights are made once the prompt has shown which, if the answer can be so long that they pay; again only when much
    /// more was observed, in prompts or in the answer itself.
    ///
    /// `plan` says how many units answers keep; without one they run dense.
    pub fn answer(
        &mut self,
        plan: Option<&Plan>,
        n_past: usize,
        n_expected: usize,
        observed: f64,
    ) -> Result<AskAnswer> {
        let run = |policy: &Policy| match policy.in_use {
            Some(_) => AskAnswer::Run(Way::Reduced),
            None => AskAnswer::Run(Way::Dense),
        };
        match &mut self.source {
            Source::Fixed if self.of_answers => return Ok(AskAnswer::Run(Way::Reduced)),
            Source::Fixed => return Ok(AskAnswer::Run(Way::Dense)),
            Source::Replay(records) => {
                // The recorded run did what it is followed in: looked back, or made masks, here and only here.
                return Ok(match records.as_slice().first() {
                    Some(r) if !r.frozen && r.kept.is_empty() && r.first.checked_add(r.n_each) == Some(n_past) => {
                        records.next();
                        AskAnswer::LookBack
                    }
                    Some(r) if r.frozen && r.first <= n_past => {
                        let record = records.next().expect("looked at above");
                        if record.kept.iter().any(|(&b, kept)| plan.and_then(|p| p.kept(b)) != Some(kept.len())) {
                            return Err(Error::malformed(UNEQUAL));
                        }
                        self.in_use = None;
                        AskAnswer::Reduce(Some(record.kept))
                    }
                    _ => run(self),
                });
            }
            Source::Probe if plan.is_none() => return Ok(AskAnswer::Run(Way::Dense)),
            Source::Probe => {}
        }
        // Whether the answer has become so long since the weights were reduced that the masks should follow it.
        let is_long = |w: &InUse| w.n_decoded as f64 >= w.observed.max(REFRESH as f64);
        let is_fresh = |w: &InUse| observed < MUCH_MORE * w.observed && !is_long(w);
        if observed == 0.0 || self.in_use.as_ref().is_some_and(is_fresh) {
            return Ok(run(self));
        }
        let Some(break_even) = self.answer_break_even else { return Ok(AskAnswer::Measure) };
        if !break_even.pays(n_expected) {
            // On what was made before, if there is any.
            self.report.answer_below = self.in_use.is_none().then_some(break_even);
            return Ok(run(self));
        }
        if let Some(w) = self.in_use.as_mut().filter(|w| is_long(w) && !w.looked_back) {
            w.looked_back = true;
            return Ok(AskAnswer::LookBack);
        }
        // The session drops the old ones first: if the new ones do not fit in memory there are none.
        self.in_use = None;
        Ok(AskAnswer::Reduce(None))
    }

    /// Hears of what [`AskAnswer::Measure`] asked for; `None` if there is nothing that could be reduced.
    pub fn learn_answer_times(&mut self, costs: Option<AnswerCosts>) {
        self.answer_break_even = Some(costs.map_or(BreakEven::Never, |c| c.break_even()));
    }

    /// Hears that reduced weights were made, at position `n_past`, of `masks` by `observed` rows: how long it took, and their bytes.
    pub fn learn_reduced(&mut self, n_past: usize, masks: Masks, observed: f64, time: Duration, n_bytes: u64) {
        self.in_use = Some(InUse { observed, n_decoded: 0, looked_back: false });
        self.report.answer_below = None;
        let before = self.report.reduced.map_or(Duration::ZERO, |f| f.0);
        self.report.reduced = Some((before + time, n_bytes));
        if let Some(records) = &mut self.records {
            records.push(Record { frozen: true, first: n_past, kept: masks, ..Default::default() });
        }
    }

    /// Hears that masks are fixed to these.
    pub fn learn_fixed(&mut self, masks: Masks) {
        if let Some(records) = &mut self.records {
            records.push(Record { frozen: true, kept: masks, ..Default::default() });
        }
    }

    /// Hears that a batch of a prompt ran.
    pub fn learn_batch(&mut self, ran: Ran) {
        let n_tokens = ran.record.n_seq * ran.record.n_each;
        let n_dense: usize = ran.record.dense.iter().sum();
        let report = &mut self.report;
        match ran.way {
            Way::Given(record) if record.kept.is_empty() => report.dense_tokens += n_tokens,
            Way::Probe | Way::Reduced | Way::Given(_) => {
                report.pruned_tokens += n_tokens - n_dense;
                report.dense_tokens += n_dense;
                report.probe_rows += ran.probe_rows;
            }
            Way::Observe if ran.is_again => {}
            Way::Observe | Way::Dense => report.dense_tokens += n_tokens,
        }
        if let (Some(records), false) = (&mut self.records, *ran.way == Way::Reduced) {
            records.push(ran.record);
        }
    }

    /// Hears that a token of an answer ran.
    pub fn learn_decoded(&mut self) {
        self.in_use.iter_mut().for_each(|w| w.n_decoded += 1);
    }
}

/// How many tokens at the beginning and at the end of a prompt's next piece are read whole: the piece has `n` tokens from position `n_past`
/// on, of `n_left` that are left.
pub fn read_whole(n_past: usize, n: usize, n_left: usize) -> [usize; 2] {
    let first = SINKS.saturating_sub(n_past).min(n);
    [first, (n + TAIL).saturating_sub(n_left).min(n - first)]
}

/// Whether a guard reads a piece of `n` tokens both ways where `n_left` are left with it: as many must come after what is compared.
pub fn is_worth_a_guard(n: usize, n_left: usize) -> bool {
    n_left >= 2 * n + COMPARED
}

/// The next record of a batch. [`crate::error::Kind::Malformed`] if there is none.
fn next_batch(records: &mut std::vec::IntoIter<Record>) -> Result<Record> {
    records.find(|r| !r.frozen).ok_or_else(|| Error::malformed("the dump has fewer batches than this run"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prune::{Block, BlockKind, Options};
    use crate::weights::{Dims, LayerDims};

    fn plan() -> Plan {
        let layer = LayerDims::gated([4, 4, 16], 256);
        Plan::new(&Options::paper(0.2), None, Dims::alike(4, 64, layer)).unwrap()
    }

    /// What is to be done with a prompt of `n` tokens.
    fn read(policy: &mut Policy, n: usize) -> (Way, usize) {
        policy.begin_prompt(0.8, None);
        policy.read(SINKS, n, 512).unwrap()
    }

    fn answer(policy: &mut Policy, n_past: usize, n_expected: usize, observed: f64) -> AskAnswer {
        policy.answer(Some(&plan()), n_past, n_expected, observed).unwrap()
    }

    #[test]
    fn short_prompts_run_dense() {
        let mut policy = Policy::probe(BreakEven::From(120), None, false, 0.8);
        assert_eq!(read(&mut policy, 119), (Way::Dense, 119));
        assert_eq!(read(&mut policy, 120), (Way::Probe, 120));
        assert!(policy.report().line().contains("below break-even (120 tokens)"));
        let mut policy = Policy::probe(BreakEven::From(2), None, false, 0.8);
        assert_eq!(read(&mut policy, 33), (Way::Dense, 33), "one token has no probe");
        assert!(policy.report().line().contains("too short for a probe"));
    }

    #[test]
    fn the_end_of_a_long_prompt_is_read_whole() {
        let mut policy = Policy::probe(BreakEven::From(100), Some(100), false, 0.8);
        policy.begin_prompt(0.8, None);
        let n = 1100 + SINKS + TAIL;
        let mut n_past = 0;
        for (step, whole) in [(379, [SINKS, 0]), (379, [0, 0]), (378, [0, TAIL])] {
            assert_eq!(policy.read(n_past, n - n_past, 512).unwrap(), (Way::Probe, step));
            assert_eq!(read_whole(n_past, step, n - n_past), whole);
            n_past += step;
        }
        assert_eq!(n_past, n);
        // Where pieces are shorter than what is read whole, none of the last ones is pruned.
        policy.begin_prompt(0.8, None);
        assert_eq!(policy.read(0, 100, 16).unwrap(), (Way::Probe, 15));
        assert_eq!(policy.read(60, 40, 16).unwrap(), (Way::Probe, 14));
        assert_eq!(read_whole(60, 14, 40), [0, 6]);
        assert_eq!(policy.read(74, 26, 16).unwrap(), (Way::Dense, 16));
        // Reduced weights serve all tokens of a batch.
        let mut fixed = Policy::fixed(false, 0.8);
        fixed.begin_prompt(0.8, None);
        assert_eq!(fixed.read(0, n, 512).unwrap(), (Way::Dense, SINKS));
        assert_eq!(fixed.read(SINKS, n - SINKS, 512).unwrap(), (Way::Reduced, 367));
        assert_eq!(fixed.read(n - TAIL, TAIL, 512).unwrap(), (Way::Dense, TAIL));
        // However little is left of a long prompt, it is still that prompt; and a short one stays short.
        policy.begin_prompt(0.8, None);
        assert_eq!(policy.read(0, 99, 64).unwrap(), (Way::Dense, 64));
        assert_eq!(policy.read(64, 35, 64).unwrap(), (Way::Dense, 35));
        // Batches of texts are pruned to their end.
        assert_eq!(policy.score(2, 50).unwrap(), Way::Probe);
        assert_eq!(policy.score(1, 99).unwrap(), Way::Dense);
    }

    #[test]
    fn what_never_pays_is_never_done() {
        let mut policy = Policy::probe(BreakEven::Never, None, true, 0.8);
        assert_eq!(read(&mut policy, 100_000), (Way::Observe, 512));
        assert!(policy.report().line().contains("does not pay for prompts"));
        policy.learn_answer_times(Some(AnswerCosts { reduce: 1.0, dense: 0.1, reduced: 0.2 }));
        assert_eq!(answer(&mut policy, 10, usize::MAX, 5.0), AskAnswer::Run(Way::Dense));
        assert!(policy.report().line().contains("pruning does not pay here"));
    }

    #[test]
    fn the_users_least_is_not_measured() {
        let mut policy = Policy::probe(BreakEven::From(50), Some(50), true, 0.8);
        assert_eq!(read(&mut policy, 49), (Way::Observe, 49));
        assert_eq!(read(&mut policy, 50), (Way::Probe, 50));
        assert_eq!(answer(&mut policy, 60, 49, 10.0), AskAnswer::Run(Way::Dense));
        assert_eq!(answer(&mut policy, 60, 50, 10.0), AskAnswer::Reduce(None));
        // A method that looks at the whole batch is for its quality.
        let mut policy = Policy::probe(BreakEven::From(2), Some(50), true, 0.8);
        assert_eq!(read(&mut policy, TAIL + 2), (Way::Probe, TAIL + 2));
        assert_eq!(read(&mut policy, TAIL + 1), (Way::Observe, TAIL + 1));
        assert!(policy.report().line().contains("too short for a probe"));
    }

    #[test]
    fn answers_run_dense_until_something_was_observed_and_if_they_are_short() {
        let mut policy = Policy::probe(BreakEven::From(2), None, true, 0.8);
        assert_eq!(answer(&mut policy, 9, 1000, 0.0), AskAnswer::Run(Way::Dense));
        assert_eq!(answer(&mut policy, 9, 1000, 20.0), AskAnswer::Measure);
        // Reduced weights cost as much as they save in 100 tokens.
        policy.learn_answer_times(Some(AnswerCosts { reduce: 50.0, dense: 1.0, reduced: 0.5 }));
        assert_eq!(answer(&mut policy, 9, 99, 20.0), AskAnswer::Run(Way::Dense));
        assert_eq!(policy.report().answer_below, Some(BreakEven::From(100)));
        assert_eq!(answer(&mut policy, 9, 100, 20.0), AskAnswer::Reduce(None));
        policy.learn_reduced(9, Masks::new(), 20.0, Duration::from_secs(1), 7);
        assert_eq!(policy.report().answer_below, None);
        assert_eq!(policy.report().reduced, Some((Duration::from_secs(1), 7)));
        assert_eq!(answer(&mut policy, 9, 100, 20.0), AskAnswer::Run(Way::Reduced));
    }

    #[test]
    fn masks_are_renewed_by_much_more_that_was_observed_or_by_looking_back() {
        let mut policy = Policy::probe(BreakEven::From(2), Some(2), true, 0.8);
        policy.learn_reduced(100, Masks::new(), 80.0, Duration::ZERO, 1);
        assert_eq!(answer(&mut policy, 100, 500, 99.0), AskAnswer::Run(Way::Reduced));
        assert_eq!(answer(&mut policy, 100, 500, 100.0), AskAnswer::Reduce(None), "a quarter more");
        policy.learn_reduced(100, Masks::new(), 100.0, Duration::ZERO, 1);
        for n in 0..100 {
            assert_eq!(answer(&mut policy, 100 + n, 500 - n, 100.0), AskAnswer::Run(Way::Reduced), "token {n}");
            policy.learn_decoded();
        }
        // As many tokens as had been observed, and at least 64.
        assert_eq!(answer(&mut policy, 200, 400, 100.0), AskAnswer::LookBack);
        assert_eq!(answer(&mut policy, 200, 400, 164.0), AskAnswer::Reduce(None), "once");
        policy.learn_reduced(200, Masks::new(), 164.0, Duration::ZERO, 1);
        assert_eq!(answer(&mut policy, 200, 400, 164.0), AskAnswer::Run(Way::Reduced));
        // Too few tokens are left for new ones to pay.
        let mut policy = Policy::probe(BreakEven::From(50), Some(50), true, 0.8);
        policy.learn_reduced(100, Masks::new(), 10.0, Duration::ZERO, 1);
        (0..64).for_each(|_| policy.learn_decoded());
        assert_eq!(answer(&mut policy, 164, 49, 10.0), AskAnswer::Run(Way::Reduced));
        policy.begin_text();
        assert_eq!(answer(&mut policy, 0, 49, 0.0), AskAnswer::Run(Way::Dense));
        // Memory for new ones was short: there are none, old or new.
        policy.learn_reduced(100, Masks::new(), 10.0, Duration::ZERO, 1);
        assert_eq!(answer(&mut policy, 100, 500, 20.0), AskAnswer::Reduce(None));
        assert_eq!(answer(&mut policy, 100, 49, 20.0), AskAnswer::Run(Way::Dense));
    }

    #[test]
    fn fixed_masks_hold_for_everything() {
        let mut policy = Policy::fixed(true, 0.8);
        policy.keep_records();
        policy.learn_fixed(Masks::new());
        assert_eq!(read(&mut policy, 100), (Way::Reduced, 100 - TAIL));
        assert_eq!(policy.score(1, 1).unwrap(), Way::Reduced);
        assert_eq!(answer(&mut policy, 0, 1, 0.0), AskAnswer::Run(Way::Reduced));
        assert_eq!(policy.records().unwrap().len(), 1);
        let mut policy = Policy::fixed(false, 0.8);
        assert_eq!(answer(&mut policy, 0, 1, 0.0), AskAnswer::Run(Way::Dense));
    }

    #[test]
    fn replays_follow_the_recorded_run() {
        let block = Block { il: 3, kind: BlockKind::Attn };
        let kept: Masks = [(block, vec![0; plan().kept(block).unwrap()])].into();
        let batch = Record { n_seq: 1, n_each: 10, kept: kept.clone(), ..Default::default() };
        let made = |first| Record { frozen: true, first, kept: kept.clone(), ..Default::default() };
        let looked_back = Record { n_seq: 1, n_each: 64, first: 20, ..Default::default() };
        let records = vec![batch.clone(), made(10), looked_back, made(84)];
        let mut policy = Policy::replay(records, 0.8);
        policy.keep_records();
        assert_eq!(read(&mut policy, 12), (Way::Given(batch), 10));
        assert_eq!(answer(&mut policy, 10, 1, 0.0), AskAnswer::Reduce(Some(kept.clone())));
        policy.learn_reduced(10, kept.clone(), 0.0, Duration::ZERO, 1);
        assert_eq!(answer(&mut policy, 83, 1, 0.0), AskAnswer::Run(Way::Reduced));
        assert_eq!(answer(&mut policy, 84, 1, 0.0), AskAnswer::LookBack);
        assert_eq!(answer(&mut policy, 84, 1, 0.0), AskAnswer::Reduce(Some(kept.clone())));
        assert!(policy.read(0, 5, 512).unwrap_err().to_string().contains("fewer batches"));
        let mut policy =
            Policy::replay(vec![Record { frozen: true, kept: [(block, vec![0, 1, 2])].into(), ..made(0) }], 0.8);
        assert!(policy.answer(Some(&plan()), 0, 1, 0.0).unwrap_err().to_string().contains("different numbers"));
    }
}
