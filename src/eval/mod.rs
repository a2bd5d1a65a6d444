//! Questions with choices: what rows of known data sets ask, by whose rules, and what came of it.
//!
//! - `python`: strings, numbers and JSON as Python has them, as hashes are made of these
//! - `question`: from a row to contexts, continuations and the right one; `task`: the rows of a file
//! - `rules`: lm-evaluation-harness's, and Probe Pruning's paper's: what is tokenised, and how
//! - `metrics`: which choice is taken, and means with their errors; `sample`: a line of the result files
//! - `paired`: two runs on the same questions
//!
//! This module knows texts and tokens, never a model's numbers but likelihoods.

mod metrics;
mod paired;
mod python;
mod question;
mod rules;
mod sample;
mod task;

pub use metrics::{Answer, Estimate, Metric, estimate};
pub use paired::Paired;
pub use python::{float, sha256};
pub use question::{Form, Question};
pub use rules::{PAPER_BATCH, PAPER_LENGTH, Pair, Rules};
pub use sample::{hashes_of, sample};
pub use task::{Task, name_of_file};
