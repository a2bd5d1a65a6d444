//! The questions of a task as requests.

use std::path::Path;

use crate::engine::{Likelihood, Request};
use crate::error::{Error, Result};
use crate::eval::{Answer, Metric, PAPER_BATCH, Rules, Task};
use crate::tokenizer::Tokenizer;

/// A task whose questions are tokenised.
pub struct Asked {
    pub task: Task,
    /// Requests of all questions
    pub requests: Vec<Request>,
    /// Where those of each question end
    ends: Vec<usize>,
}

impl Asked {
    /// Tokenises a task. [`crate::error::Kind::Malformed`] names the line of a question that cannot be asked. The paper leaves out what fills
    /// no batch.
    pub fn new(task: Task, path: &Path, tokenizer: &Tokenizer, rules: Rules, max_length: usize) -> Result<Asked> {
        let (mut requests, mut ends) = (Vec::new(), Vec::new());
        for (question, line) in task.questions.iter().zip(&task.lines) {
            let of_question = rules.requests(tokenizer, &question.pairs, max_length)?;
            requests.extend(of_question.map_err(|e| Error::malformed(format!("line {line}: {e}")).in_file(path))?);
            ends.push(requests.len());
        }
        if rules == Rules::Paper {
            requests.truncate(requests.len() / PAPER_BATCH * PAPER_BATCH);
            if requests.is_empty() {
                let few = format!("has too few choices to fill a batch of {PAPER_BATCH} (--rules pp)");
                return Err(Error::malformed(few).in_file(path));
            }
            let before = ends.iter().take_while(|&&end| end < requests.len()).count();
            ends.truncate(before + 1);
            ends[before] = requests.len();
        }
        Ok(Asked { task, requests, ends })
    }

    /// Number of questions of which at least one choice is scored.
    pub fn n_questions(&self) -> usize {
        self.ends.len()
    }

    /// Ends of the requests of each question.
    pub fn ends(&self) -> &[usize] {
        &self.ends
    }

    /// Question number `i`'s answer, of all likelihoods.
    pub fn answer(&self, i: usize, likelihoods: &[Likelihood]) -> Answer {
        let range = if i == 0 { 0 } else { self.ends[i - 1] }..self.ends[i];
        Answer {
            likelihoods: likelihoods[range.clone()].to_vec(),
            n_tokens: self.requests[range].iter().map(|r| r.n_scored).collect(),
        }
    }

    /// Questions whose choices are all among the first `n` that are scored.
    pub fn n_answered(&self, n: usize) -> usize {
        self.ends.partition_point(|&end| end <= n)
    }

    /// 1 if the right choice of question number `i` is taken, else 0.
    pub fn value(&self, i: usize, metric: Metric, likelihoods: &[Likelihood]) -> f64 {
        let question = &self.task.questions[i];
        let is_right = self.answer(i, likelihoods).is_right(metric, &question.lengths, question.gold);
        if is_right { 1.0 } else { 0.0 }
    }

    /// The value of each question, by the likelihoods of all.
    pub fn values(&self, metric: Metric, likelihoods: &[Likelihood]) -> Vec<f64> {
        (0..self.n_questions()).map(|i| self.value(i, metric, likelihoods)).collect()
    }
}
