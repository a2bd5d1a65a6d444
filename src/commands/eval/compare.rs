//! `--compare`: two runs on the same questions, question by question.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::commands::input::read_text;
use crate::commands::output::print;
use crate::error::{Error, Result};
use crate::eval::{Paired, hashes_of};

/// The samples of a task.
struct Samples {
    path: PathBuf,
    samples: Vec<Value>,
}

/// Compares what is in two folders of results, or in two files of samples.
pub fn run(paths: [&Path; 2]) -> Result<()> {
    let [a, b] = [read(paths[0])?, read(paths[1])?];
    let mut out = String::from(
        "| task | metric | questions | A | B | B - A | only A right | only B right | McNemar's p |\n\
         | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    let both: Vec<_> = a.iter().filter_map(|(task, a)| Some((task, a, b.get(task)?))).collect();
    if both.is_empty() {
        let names = |s: &BTreeMap<String, Samples>| s.keys().cloned().collect::<Vec<_>>().join(", ");
        return Err(Error::malformed(format!("no task is in both: A has {}, and B {}", names(&a), names(&b))));
    }
    for (task, a, b) in both {
        require_same(task, a, b)?;
        let metrics = a.samples[0]["metrics"].as_array().into_iter().flatten().filter_map(Value::as_str);
        for metric in metrics.filter(|m| !b.samples[0][*m].is_null()) {
            let p = Paired::of(&a.values(metric)?, &b.values(metric)?);
            let error = p.difference.error.map_or(String::new(), |e| format!(" +/- {e:.4}"));
            out.push_str(&format!(
                "| {task} | {metric} | {} | {:.4} | {:.4} | {:+.4}{error} | {} | {} | {:.4} |\n",
                p.n, p.means[0], p.means[1], p.difference.mean, p.only[0], p.only[1], p.p
            ));
        }
    }
    print(&out)
}

/// The samples of each task: those of a file, or of the last files of a folder.
fn read(path: &Path) -> Result<BTreeMap<String, Samples>> {
    let files = if path.is_dir() { last_files(path)? } else { vec![path.to_owned()] };
    let mut all = BTreeMap::new();
    for path in files {
        let text = read_text(&path)?;
        let lines = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
        let sample = |(i, line): (usize, &str)| {
            let sample: Result<Value, _> = serde_json::from_str(line);
            let has_hashes = |s: &Value| ["doc_hash", "prompt_hash", "target_hash"].iter().all(|h| s[*h].is_string());
            let no_sample = || Error::malformed(format!("line {}: is no sample", i + 1)).in_file(&path);
            sample.ok().filter(has_hashes).ok_or_else(no_sample)
        };
        let samples: Vec<Value> = lines.map(sample).collect::<Result<_>>()?;
        if samples.is_empty() {
            return Err(Error::malformed("has no samples").in_file(&path));
        }
        all.insert(task_of(&path), Samples { path, samples });
    }
    Ok(all)
}

/// `samples_TASK_TIME.jsonl`
fn task_of(path: &Path) -> String {
    let stem = path.file_stem().map_or_else(|| "".into(), |s| s.to_string_lossy().into_owned());
    let name = stem.strip_prefix("samples_").and_then(|s| s.rsplit_once('_')).map(|s| s.0.to_owned());
    name.unwrap_or(stem)
}

/// The last file of samples of each task in a folder, or in its only folder.
fn last_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(|e| Error::input(format!("cannot be read: {e}")).in_file(folder))?;
    let paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    let is_samples = |p: &&PathBuf| {
        let name = p.file_name().map_or_else(|| "".into(), |n| n.to_string_lossy());
        name.starts_with("samples_") && name.ends_with(".jsonl")
    };
    let mut last: BTreeMap<String, PathBuf> = BTreeMap::new();
    for path in paths.iter().filter(is_samples) {
        // The time is in the name, so that the greatest name is the last file.
        let of_task = last.entry(task_of(path)).or_insert_with(|| path.clone());
        *of_task = path.max(of_task).clone();
    }
    let folders: Vec<&PathBuf> = paths.iter().filter(|p| p.is_dir()).collect();
    match (last.is_empty(), &folders[..]) {
        (false, _) => Ok(last.into_values().collect()),
        (true, [only]) => last_files(only),
        (true, []) => Err(Error::input("has no files of samples (samples_TASK_TIME.jsonl)").in_file(folder)),
        (true, _) => {
            Err(Error::usage(format!("--compare: {} has the results of several runs: name one", folder.display())))
        }
    }
}

/// [`crate::error::Kind::Malformed`] if two runs were not asked the same.
fn require_same(task: &str, a: &Samples, b: &Samples) -> Result<()> {
    let hash = |s: &Samples| hashes_of(s.samples.iter());
    let arguments = |s: &Samples| s.samples.iter().map(|s| s["arguments"].clone()).collect::<Vec<_>>();
    let why = if hash(a) != hash(b) {
        format!("task hashes differ: {} and {}", hash(a), hash(b))
    } else if arguments(a) != arguments(b) {
        "the questions are the same, but contexts or choices were put to the models differently".into()
    } else {
        return Ok(());
    };
    let (a, b) = (a.path.display(), b.path.display());
    Err(Error::malformed(format!("{task}: {a} and {b} cannot be compared: {why}")))
}

impl Samples {
    fn values(&self, metric: &str) -> Result<Vec<f64>> {
        let value = |s: &Value| s[metric].as_f64();
        let values: Option<Vec<f64>> = self.samples.iter().map(value).collect();
        values.ok_or_else(|| Error::malformed(format!("a sample has no '{metric}'")).in_file(&self.path))
    }
}
