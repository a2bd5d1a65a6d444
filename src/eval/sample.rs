//! A question and what came of it, as a line of lm-evaluation-harness's files of samples; and hashes of what was asked.

use serde_json::{Map, Value, json};

use super::metrics::{Answer, Metric};
use super::python::{dumps, float, sha256};
use super::question::Question;
use super::rules::Pair;
use crate::engine::Likelihood;

/// The hash of all questions of a task: of those of its samples, one after the other.
pub fn hashes_of<'a>(samples: impl Iterator<Item = &'a Value>) -> String {
    let of_sample = |s: &Value| {
        let hash = |key: &str| s[key].as_str().unwrap_or_default().to_owned();
        hash("doc_hash") + &hash("prompt_hash") + &hash("target_hash")
    };
    sha256(&samples.map(of_sample).collect::<String>())
}

/// The sample of question number `doc_id`.
pub fn sample(doc_id: usize, question: &Question, answer: &Answer, metrics: &[Metric]) -> Value {
    let Question { doc, pairs, lengths, gold, target } = question;
    let pairs = &pairs[..answer.likelihoods.len()];
    let argument = |(i, pair): (usize, &Pair)| {
        (format!("gen_args_{i}"), json!({"arg_0": pair.context, "arg_1": pair.continuation}))
    };
    let response = |l: &Likelihood| json!([float(l.sum), if l.is_greedy { "True" } else { "False" }]);
    let responses: Vec<Value> = answer.likelihoods.iter().map(response).collect();
    let mut sample = json!({
        "doc_id": doc_id,
        "doc": doc,
        "target": target,
        "arguments": pairs.iter().enumerate().map(argument).collect::<Map<String, Value>>(),
        "resps": responses.iter().map(|r| json!([r])).collect::<Vec<_>>(),
        "filtered_resps": responses,
        "filter": "none",
        "metrics": metrics.iter().map(|m| m.name()).collect::<Vec<_>>(),
        "doc_hash": sha256(&dumps(doc)),
        "prompt_hash": sha256(&pairs[0].context),
        "target_hash": sha256(target),
    });
    for metric in metrics {
        let is_right = answer.is_right(*metric, lengths, *gold);
        sample[metric.name()] = json!(if is_right { 1.0 } else { 0.0 });
    }
    sample
}
