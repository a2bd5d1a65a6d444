//! The result files, which are lm-evaluation-harness's: one of aggregates, and one of samples for each task.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::asked::Asked;
use super::options::RunOptions;
use crate::commands::output::write_file;
use crate::engine::{Likelihood, Loaded};
use crate::error::{Error, Kind, Result};
use crate::eval::{Rules, estimate, hashes_of, sample};
use crate::prune;
use crate::system::memory;
use crate::tokenizer::Tokenizer;

/// Whose files these are like.
const LM_EVAL: &str = "0.4.13";

/// A way of pruning, and the model.
pub struct Run {
    /// The model, and how it is pruned
    pub name: String,
    /// What decides, if anything is pruned
    pub method: Option<&'static str>,
    /// How much is pruned
    pub amount: String,
    rules: Rules,
    read: bool,
    config: Value,
    tokenizer: Value,
    max_length: usize,
    kernels: &'static str,
    probe: Value,
    plan: Value,
    date: f64,
}

/// What came of one task.
pub struct Outcome {
    pub likelihoods: Vec<Likelihood>,
    pub seconds: f64,
    /// Heads and channels that each layer kept
    pub kept: Option<Vec<[usize; 2]>>,
    /// What pruning did, in words
    pub report: Option<String>,
}

impl Run {
    /// What is known of a run before it.
    pub fn new(
        options: &RunOptions,
        prune: Option<&prune::Options>,
        loaded: &Loaded,
        tokenizer: &Tokenizer,
        max_length: usize,
    ) -> Run {
        let path = &options.model.path;
        let stem = path.file_stem().map_or_else(|| "model".into(), |s| s.to_string_lossy().into_owned());
        let (method, amount) = (prune.map(|p| p.method.name()), prune.map_or("0".into(), prune::Options::amount));
        let mut name = stem;
        if let Some(method) = method {
            name.push_str(&format!("-{method}-{amount}"));
        }
        if options.read {
            name.push_str("-read");
        }
        if options.rules == Rules::Paper {
            name.push_str("-pp-rules");
        }
        let piece = |token: Option<i32>| {
            token.map_or(Value::Null, |t| json!([String::from_utf8_lossy(&tokenizer.piece(t, true)), t.to_string()]))
        };
        let config = json!({
            "model": "pp-run",
            "model_args": {
                "pretrained": path.display().to_string(),
                "prune": amount,
                "prune_method": method,
                "rules": options.rules.name(),
                "read": options.read,
            },
            "model_sha": format!("{:016x}", loaded.gguf().fingerprint()),
            "batch_size": options.context.n_batch,
            "batch_sizes": [],
            "device": loaded.backend(),
            "use_cache": null,
            "limit": options.limit,
            "bootstrap_iters": 0,
            "gen_kwargs": null,
            "random_seed": null,
            "numpy_seed": null,
            "torch_seed": null,
            "fewshot_seed": null,
        });
        let tokenizer = json!({
            "tokenizer_bos_token": piece(tokenizer.bos()),
            "tokenizer_eos_token": piece(tokenizer.eos()),
            "tokenizer_adds_bos": tokenizer.add_bos(),
        });
        let probe = prune.filter(|p| p.method.looks_at_batch()).map_or(
            Value::Null,
            |p| json!({"tokens": p.tokens, "samples": p.samples, "history": p.history.name(), "momentum": p.momentum}),
        );
        let plan = prune.map_or(Value::Null, |p| json!(p.spread.name()));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Run {
            name,
            method,
            amount,
            rules: options.rules,
            read: options.read,
            config,
            tokenizer,
            max_length,
            kernels: options.model.weights.kernels.name(),
            probe,
            plan,
            date: now.as_secs_f64(),
        }
    }

    /// The folder of its files, below that of all.
    pub fn folder(&self, output: &Path) -> PathBuf {
        output.join(sanitised(&self.name))
    }
}

/// A name for a folder: each run of characters that some file system does not take becomes `__`.
fn sanitised(name: &str) -> String {
    let mut out = String::new();
    let mut is_in_run = false;
    for c in name.chars() {
        let is_bad = "\"<>:/|\\?*[]".contains(c);
        match is_bad {
            true if !is_in_run => out.push_str("__"),
            true => {}
            false => out.push(c),
        }
        is_in_run = is_bad;
    }
    out
}

/// Writes the files of a run, and returns the name of that of the aggregates.
pub fn write(output: &Path, run: &Run, tasks: &[Asked], outcomes: &[Outcome], time: Duration) -> Result<PathBuf> {
    let folder = run.folder(output);
    let create = |e: std::io::Error| Error::new(Kind::CannotCreate, format!("{e}")).in_file(&folder);
    std::fs::create_dir_all(&folder).map_err(create)?;
    let stamp = jiff::Zoned::now().strftime("%Y-%m-%dT%H-%M-%S.%6f").to_string();
    let mut all = Map::new();
    let mut put = |key: &str, of_task: &dyn Fn(&Asked, &Outcome) -> Value| {
        let rows = tasks.iter().zip(outcomes).map(|(a, o)| (a.task.name.clone(), of_task(a, o)));
        all.insert(key.to_owned(), Value::Object(rows.collect()));
    };
    put("results", &|a, o| of_task(run, a, o));
    put("configs", &|a, _| config(run, a));
    put("versions", &|a, _| json!(a.task.form.version()));
    put("n-shot", &|_, _| json!(0));
    put("higher_is_better", &|a, _| {
        a.task.form.metrics(run.rules).iter().map(|m| (m.name().to_owned(), json!(true))).collect()
    });
    put("n-samples", &|a, _| json!({"original": a.task.n_rows, "effective": a.n_questions()}));
    let mut hashes = Map::new();
    for (asked, outcome) in tasks.iter().zip(outcomes) {
        let metrics = asked.task.form.metrics(run.rules);
        let of_question =
            |i: usize| sample(i, &asked.task.questions[i], &asked.answer(i, &outcome.likelihoods), metrics);
        let samples: Vec<Value> = (0..asked.n_questions()).map(of_question).collect();
        hashes.insert(asked.task.name.clone(), json!(hashes_of(samples.iter())));
        let lines: String = samples.iter().map(|s| format!("{s}\n")).collect();
        write_file(&folder.join(format!("samples_{}_{stamp}.jsonl", asked.task.name)), lines.as_bytes())?;
    }
    let mut put = |key: &str, value: Value| all.insert(key.to_owned(), value);
    // Groups of tasks have their means there; there are none.
    put("group_subtasks", json!({}));
    put("config", run.config.clone());
    put("git_hash", Value::Null);
    put("date", json!(run.date));
    put("lm_eval_version", json!(LM_EVAL));
    for (key, value) in run.tokenizer.as_object().into_iter().flatten() {
        put(key, value.clone());
    }
    put("max_length", json!(run.max_length));
    put("task_hashes", Value::Object(hashes));
    put("model_source", json!("pp-run"));
    put("model_name", json!(run.name));
    put("model_name_sanitized", json!(sanitised(&run.name)));
    for key in
        ["system_instruction", "system_instruction_sha", "fewshot_as_multiturn", "chat_template", "chat_template_sha"]
    {
        put(key, Value::Null);
    }
    put("total_evaluation_time_seconds", json!(time.as_secs_f64().to_string()));
    let of_tasks = tasks.iter().zip(outcomes).map(|(a, o)| {
        (a.task.name.clone(), json!({"seconds": o.seconds, "kept_per_layer": o.kept, "pruning": o.report}))
    });
    put(
        "pp",
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "rules": run.rules.name(),
            "read": run.read,
            "ratio": run.amount,
            "plan": run.plan,
            "method": run.method,
            "kernels": run.kernels,
            "probe": run.probe,
            "tasks": of_tasks.collect::<Map<String, Value>>(),
            "peak_bytes": memory::peak(),
        }),
    );
    let file = folder.join(format!("results_{stamp}.json"));
    let text = serde_json::to_string_pretty(&Value::Object(all)).expect("keys are strings");
    write_file(&file, text.as_bytes())?;
    Ok(file)
}

/// Metrics of a task.
fn of_task(run: &Run, asked: &Asked, outcome: &Outcome) -> Value {
    let mut all = json!({"name": asked.task.name, "alias": asked.task.name, "sample_len": asked.n_questions()});
    for metric in asked.task.form.metrics(run.rules) {
        let e = estimate(&asked.values(*metric, &outcome.likelihoods));
        let name = metric.name();
        all[format!("{name},none")] = json!(e.mean);
        all[format!("{name}_stderr,none")] = e.error.map_or(json!("N/A"), |error| json!(error));
    }
    all
}

/// What a task is.
fn config(run: &Run, asked: &Asked) -> Value {
    let metric = |m: &crate::eval::Metric| json!({"metric": m.name(), "aggregation": "mean", "higher_is_better": true});
    let form = asked.task.form;
    json!({
        "task": asked.task.name,
        "output_type": "multiple_choice",
        "fields": form.fields(),
        "doc_to_text": form.template(),
        "target_delimiter": " ",
        "num_fewshot": 0,
        "repeats": 1,
        "metric_list": form.metrics(run.rules).iter().map(metric).collect::<Vec<_>>(),
        "metadata": {"version": form.version()},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_folders() {
        assert_eq!(sanitised("a/b:c?*[x].Q4_1"), "a__b__c__x__.Q4_1");
    }
}
