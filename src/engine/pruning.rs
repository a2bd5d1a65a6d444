//! The policy of pruning: what to do next with a prompt or an answer.
//!
//! A state machine without a model and without a clock. Before each piece of a prompt and each token of an answer the session asks; what it
//! is told to run or to measure it does, and tells what came of it. So the rules can be tested with any figures.

use std::time::Duration;

use super::core::UNEQUAL;
use super::report::{BreakEven, Report};
use crate::error::{Error, Result};
use crate::prune::{Masks, Plan, Record};

/// Tokens of an answer that are looked at again, so that masks follow it.
pub const REFRESH: usize = 64;

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

/// What to do with a piece of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub enum AskPrompt {
    /// Measure how long short and long pieces take, and tell [`Policy::learn_prompt_times`]
    Measure,
    /// Run it
    Run(Way),
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

/// Seconds of one MLP's run for a short and a long piece of a prompt, dense and with a probe.
#[derive(Debug, Clone, Copy)]
pub struct PromptCosts {
    /// Tokens of both pieces
    pub n: [usize; 2],
    /// Dense, and observed
    pub dense: [f64; 2],
    /// With a probe
    pub probe: [f64; 2],
}

impl PromptCosts {
    /// From how many tokens on pruning pays: between the measured pieces, time is taken to be a line.
    fn break_even(&self) -> BreakEven {
        let between = (self.n[1] - self.n[0]) as f64;
        let slope = |t: [f64; 2]| (t[1] - t[0]) / between;
        let fixed = |t: [f64; 2]| t[0] - slope(t) * self.n[0] as f64;
        let saved = slope(self.dense) - slope(self.probe);
        if saved <= 0.0 {
            return BreakEven::Never;
        }
        BreakEven::From(((fixed(self.probe) - fixed(self.dense)) / saved).ceil().clamp(2.0, 1e9) as usize)
    }
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
    /// Which answers are pruned; `None` before it is measured. Which prompts are is in the report.
    answer_break_even: Option<BreakEven>,
    /// The session has reduced weights exactly while this is something
    in_use: Option<InUse>,
    /// Batches so far, if they are to be dumped
    records: Option<Vec<Record>>,
    report: Report,
}

impl Policy {
    /// Masks come from probes. Pieces and answers shorter than `least` run dense, or than what is measured where it is `None`. With
    /// `probes_all`, where quality counts and not time, all pieces of a prompt are pruned.
    pub fn probe(least: Option<usize>, probes_all: bool, kept_share: f64) -> Policy {
        let of_prompts = if probes_all { Some(2) } else { least };
        Policy::new(Source::Probe, of_prompts, least, kept_share)
    }

    /// Masks are fixed.
    pub fn fixed(kept_share: f64) -> Policy {
        let mut policy = Policy::new(Source::Fixed, None, None, kept_share);
        policy.report.is_fixed = true;
        policy
    }

    /// Masks are those of another run.
    pub fn replay(records: Vec<Record>, kept_share: f64) -> Policy {
        Policy::new(Source::Replay(records.into_iter()), Some(2), None, kept_share)
    }

    fn new(source: Source, of_prompts: Option<usize>, of_answers: Option<usize>, kept_share: f64) -> Policy {
        let report = Report { kept: kept_share, break_even: of_prompts.map(BreakEven::From), ..Default::default() };
        let answer_break_even = of_answers.map(BreakEven::From);
        Policy { source, answer_break_even, in_use: None, records: None, report }
    }

    /// Keeps a record of each batch from now on.
    pub fn keep_records(&mut self) {
        self.records.get_or_insert_default();
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

    /// Another prompt begins: what is reported is of it.
    pub fn begin_prompt(&mut self) {
        self.report = self.report.next();
    }

    /// Another text begins, of which nothing was observed: reduced weights that were made for the last one are gone.
    pub fn begin_text(&mut self) {
        self.in_use = None;
    }

    /// What to do with a piece of `n` tokens of a prompt. [`crate::error::Kind::Malformed`] if the records of a replay are at their end.
    pub fn prompt(&mut self, n: usize) -> Result<AskPrompt> {
        match &mut self.source {
            Source::Fixed => return Ok(AskPrompt::Run(Way::Reduced)),
            Source::Replay(records) => {
                let record = records.find(|r| !r.frozen);
                let record = record.ok_or_else(|| Error::malformed("the dump has fewer batches than this run"))?;
                return Ok(AskPrompt::Run(Way::Given(record)));
            }
            Source::Probe => {}
        }
        Ok(match self.report.break_even {
            // One token has no probe: there is nothing to measure for.
            _ if n < 2 => AskPrompt::Run(Way::Observe),
            None => AskPrompt::Measure,
            Some(break_even) if break_even.pays(n) => AskPrompt::Run(Way::Probe),
            Some(_) => AskPrompt::Run(Way::Observe),
        })
    }

    /// Hears of what [`AskPrompt::Measure`] asked for; `None` if there is nothing that could be pruned.
    pub fn learn_prompt_times(&mut self, costs: Option<PromptCosts>) {
        self.report.break_even = Some(costs.map_or(BreakEven::Never, |c| c.break_even()));
    }

    /// What to do before the next token of an answer, at position `n_past`, to be followed by at most `n_expected` with itself; `observed`
    /// are the rows that were observed of the text so far.
    ///
    /// Reduced weights are made once the prompt has shown which, if the answer can be so long that they pay; again only when much
    /// more was observed, in prompts or in the answer itself.
    pub fn answer(&mut self, plan: &Plan, n_past: usize, n_expected: usize, observed: f64) -> Result<AskAnswer> {
        let run = |policy: &Policy| match policy.in_use {
            Some(_) => AskAnswer::Run(Way::Reduced),
            None => AskAnswer::Run(Way::Dense),
        };
        match &mut self.source {
            Source::Fixed => return Ok(AskAnswer::Run(Way::Reduced)),
            Source::Replay(records) => {
                // The recorded run did what it is followed in: looked back, or made masks, here and only here.
                return Ok(match records.as_slice().first() {
                    Some(r) if !r.frozen && r.kept.is_empty() && r.first.checked_add(r.n_each) == Some(n_past) => {
                        records.next();
                        AskAnswer::LookBack
                    }
                    Some(r) if r.frozen && r.first <= n_past => {
                        let record = records.next().expect("looked at above");
                        if record.kept.iter().any(|(&b, kept)| plan.kept(b) != Some(kept.len())) {
                            return Err(Error::malformed(UNEQUAL));
                        }
                        self.in_use = None;
                        AskAnswer::Reduce(Some(record.kept))
                    }
                    _ => run(self),
                });
            }
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
        let report = &mut self.report;
        match ran.way {
            Way::Probe => {
                report.pruned_tokens += n_tokens;
                report.probe_rows += ran.probe_rows;
            }
            Way::Given(record) if record.kept.is_empty() => report.dense_tokens += n_tokens,
            Way::Reduced | Way::Given(_) => report.pruned_tokens += n_tokens,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prune::{Block, BlockKind, Options};
    use crate::weights::Dims;

    fn plan() -> Plan {
        let dims =
            Dims { n_layer: 4, n_embd: 64, n_head: 4, n_head_kv: 4, n_embd_head: 16, n_ff: 256, n_ff_matrices: 3 };
        Plan::new(&Options::new(0.2), dims).unwrap()
    }

    /// Costs of a machine on which pruning pays from `n` tokens of a prompt on.
    fn prompt_costs(n: f64) -> PromptCosts {
        // A probe takes as long as it saves of `n` tokens: half of each.
        let [short, long] = [96.0, 192.0];
        let probe = |tokens: f64| 0.5 * n + 0.5 * tokens;
        PromptCosts { n: [96, 192], dense: [short, long], probe: [probe(short), probe(long)] }
    }

    fn answer(policy: &mut Policy, n_past: usize, n_expected: usize, observed: f64) -> AskAnswer {
        policy.answer(&plan(), n_past, n_expected, observed).unwrap()
    }

    #[test]
    fn prompts_are_measured_once_and_short_ones_run_dense() {
        let mut policy = Policy::probe(None, false, 0.8);
        assert_eq!(policy.prompt(1).unwrap(), AskPrompt::Run(Way::Observe), "one token has no probe");
        assert!(policy.report().line().contains("too short for a probe"));
        assert_eq!(policy.prompt(300).unwrap(), AskPrompt::Measure);
        policy.learn_prompt_times(Some(prompt_costs(120.0)));
        assert_eq!(policy.report().break_even, Some(BreakEven::From(120)));
        assert_eq!(policy.prompt(119).unwrap(), AskPrompt::Run(Way::Observe));
        assert_eq!(policy.prompt(120).unwrap(), AskPrompt::Run(Way::Probe));
        assert!(policy.report().line().contains("below break-even (120 tokens)"));
    }

    #[test]
    fn what_never_pays_is_never_done() {
        let mut policy = Policy::probe(None, false, 0.8);
        policy.learn_prompt_times(Some(PromptCosts { n: [96, 192], dense: [1.0, 2.0], probe: [1.5, 2.6] }));
        assert_eq!(policy.prompt(100_000).unwrap(), AskPrompt::Run(Way::Observe));
        assert_eq!(policy.report().break_even, Some(BreakEven::Never));
        policy.learn_answer_times(Some(AnswerCosts { reduce: 1.0, dense: 0.1, reduced: 0.2 }));
        assert_eq!(answer(&mut policy, 10, usize::MAX, 5.0), AskAnswer::Run(Way::Dense));
        assert!(policy.report().line().contains("pruning does not pay here"));
        policy.learn_prompt_times(None);
        assert_eq!(policy.prompt(500).unwrap(), AskPrompt::Run(Way::Observe));
    }

    #[test]
    fn the_users_least_is_not_measured() {
        let mut policy = Policy::probe(Some(50), false, 0.8);
        assert_eq!(policy.prompt(49).unwrap(), AskPrompt::Run(Way::Observe));
        assert_eq!(policy.prompt(50).unwrap(), AskPrompt::Run(Way::Probe));
        assert_eq!(answer(&mut policy, 60, 49, 10.0), AskAnswer::Run(Way::Dense));
        assert_eq!(answer(&mut policy, 60, 50, 10.0), AskAnswer::Reduce(None));
        // A method that looks at the whole batch is for its quality.
        let mut policy = Policy::probe(Some(50), true, 0.8);
        assert_eq!(policy.prompt(2).unwrap(), AskPrompt::Run(Way::Probe));
    }

    #[test]
    fn answers_run_dense_until_something_was_observed_and_if_they_are_short() {
        let mut policy = Policy::probe(None, false, 0.8);
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
        let mut policy = Policy::probe(Some(2), false, 0.8);
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
        let mut policy = Policy::probe(Some(50), false, 0.8);
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
        let mut policy = Policy::fixed(0.8);
        policy.keep_records();
        policy.learn_fixed(Masks::new());
        assert_eq!(policy.prompt(1).unwrap(), AskPrompt::Run(Way::Reduced));
        assert_eq!(answer(&mut policy, 0, 1, 0.0), AskAnswer::Run(Way::Reduced));
        assert_eq!(policy.records().unwrap().len(), 1);
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
        assert_eq!(policy.prompt(10).unwrap(), AskPrompt::Run(Way::Given(batch)));
        assert_eq!(answer(&mut policy, 10, 1, 0.0), AskAnswer::Reduce(Some(kept.clone())));
        policy.learn_reduced(10, kept.clone(), 0.0, Duration::ZERO, 1);
        assert_eq!(answer(&mut policy, 83, 1, 0.0), AskAnswer::Run(Way::Reduced));
        assert_eq!(answer(&mut policy, 84, 1, 0.0), AskAnswer::LookBack);
        assert_eq!(answer(&mut policy, 84, 1, 0.0), AskAnswer::Reduce(Some(kept.clone())));
        assert!(policy.prompt(5).unwrap_err().to_string().contains("fewer batches"));
        let mut policy =
            Policy::replay(vec![Record { frozen: true, kept: [(block, vec![0, 1, 2])].into(), ..made(0) }], 0.8);
        assert!(policy.answer(&plan(), 0, 1, 0.0).unwrap_err().to_string().contains("different numbers"));
    }
}
