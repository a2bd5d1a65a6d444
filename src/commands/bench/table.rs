//! The results as a table: Markdown, CSV or JSON.

use std::time::Duration;

use serde_json::{Value, json};

use super::measure::Row;
use super::options::{Format, Options};
use crate::commands::output::print;
use crate::engine::Loaded;
use crate::error::{Error, Result, escape};
use crate::model::description;
use crate::system::memory;

/// The table: Markdown and CSV are printed row by row, JSON when all rows are there.
pub struct Table {
    pub format: Format,
    pub baseline: bool,
    /// Whether something is pruned
    pub prune: bool,
    /// Whether there are steps
    pub steps: bool,
    /// Whether rows say of which file they are, as there are several
    pub names: bool,
    pub rows: Vec<Value>,
}

impl Table {
    pub fn add(&mut self, row: &Row, model: &Loaded, options: &Options) -> Result<()> {
        let nanoseconds = |t: Duration| t.as_nanos() as f64;
        let n = row.test.n_tokens() as f64;
        let times: Vec<f64> = row.samples.iter().map(|s| nanoseconds(s.time)).collect();
        let freezes: Vec<f64> = row.samples.iter().map(|s| nanoseconds(s.freeze)).collect();
        let speeds: Vec<f64> = times.iter().map(|t| n / t * 1e9).collect();
        let unfrozen: Vec<f64> = times.iter().zip(&freezes).map(|(t, f)| n / (t - f) * 1e9).collect();
        let (avg_ns, stddev_ns) = mean_and_deviation(&times);
        let (avg_ts, stddev_ts) = mean_and_deviation(&speeds);
        let reduced = row.report.as_ref().and_then(|r| r.reduced);
        let c = &options.context;
        let mut value = json!({
            "engine": row.engine,
            "repack": row.repack,
            "kernels": row.kernels.name(),
            "test": row.test.name(),
            "backends": model.backend(),
            "model_filename": model.gguf().path().display().to_string(),
            "model_type": description(model.gguf()),
            "model_size": model.gguf().n_bytes(),
            "model_n_params": model.gguf().n_params(),
            "n_batch": c.n_batch,
            "n_ubatch": c.n_ubatch,
            "n_threads": row.n_threads,
            "type_k": c.cache_type_k.name(),
            "type_v": c.cache_type_v.name(),
            "flash_attn": c.flash_attn,
            "n_prompt": row.test.n_prompt,
            "n_gen": row.test.n_gen,
            "n_depth": row.test.n_depth,
            "step_cost": row.step.map(|s| s.cost),
            "step_nmse": row.step.map(|s| s.nmse),
            "prune": row.prune,
            "kept": row.kept(),
            "prune_report": row.how(),
            "freeze_bytes": reduced.map_or(0, |f| f.1),
            "avg_freeze_ns": mean_and_deviation(&freezes).0,
            "samples_freeze_ns": freezes,
            "avg_ts_without_freeze": mean_and_deviation(&unfrozen).0,
            "samples_ts_without_freeze": unfrozen,
            "avg_ns": avg_ns,
            "stddev_ns": stddev_ns,
            "avg_ts": avg_ts,
            "stddev_ts": stddev_ts,
            "samples_ns": times,
            "samples_ts": speeds,
        });
        if let Some(ratio) = row.ratio {
            value["ratio"] = ratio.into();
        }
        match self.format {
            Format::Json => {}
            Format::Md => self.markdown(row, model, avg_ts, stddev_ts)?,
            Format::Csv => self.csv(&value)?,
        }
        self.rows.push(value);
        Ok(())
    }

    fn markdown(&self, row: &Row, model: &Loaded, avg: f64, deviation: f64) -> Result<()> {
        let mut name = description(model.gguf());
        if self.names {
            name.push_str(&format!(" {}", escape(&model.gguf().path().display().to_string())));
        }
        let mut columns = vec![
            ("model", 24, name),
            ("size", 10, memory::human(model.gguf().n_bytes())),
            ("params", 10, format!("{:.2} M", model.gguf().n_params() as f64 / 1e6)),
            ("backend", 10, model.backend()),
            ("threads", 7, row.n_threads.to_string()),
            ("test", 16, row.test.name()),
            ("t/s", 20, format!("{avg:.2} \u{b1} {deviation:.2}")),
        ];
        if self.steps {
            columns.push(("t(n)/t(1)", 9, row.step.map_or_else(String::new, |s| format!("{:.3}", s.cost))));
        }
        if self.baseline {
            // What the baseline's weights were in, where that is a difference.
            let layout = row.repack.map_or("", |repack| if repack { ", repacked" } else { ", as in file" });
            columns.push(("engine", 20, format!("{}{layout}", row.engine)));
        }
        if self.prune {
            columns.push(("prune", 5, if row.prune > 0.0 { row.prune.to_string() } else { "-".to_owned() }));
            columns.push(("kept", 6, format!("{:.1}%", 100.0 * row.kept())));
        }
        if self.baseline {
            columns.push(("ratio", 6, row.ratio.map_or_else(String::new, |r| format!("{r:.3}"))));
        }
        let line = |cell: &dyn Fn(&(&str, usize, String)) -> String| {
            let cells: Vec<String> = columns.iter().map(cell).collect();
            format!("|{}|\n", cells.join("|"))
        };
        // The first column is to the left, numbers are to the right.
        let text = |name: &str, width: usize, text: &str| match name {
            "model" => format!(" {text:<width$} "),
            _ => format!(" {text:>width$} "),
        };
        if self.rows.is_empty() {
            let rule = |name: &str, width: usize| "-".repeat(width + 1) + if name == "model" { "-" } else { ":" };
            print(
                &(line(&|(name, width, _)| text(name, *width, name)) + &line(&|(name, width, _)| rule(name, *width))),
            )?;
        }
        print(&line(&|(name, width, cell)| text(name, *width, cell)))
    }

    fn csv(&self, value: &Value) -> Result<()> {
        // Every row has the same columns; lists are for JSON.
        let object = value.as_object().expect("a row is an object");
        let mut columns: Vec<&str> =
            object.iter().filter(|(k, v)| !v.is_array() && *k != "ratio").map(|(k, _)| k.as_str()).collect();
        if self.baseline {
            columns.push("ratio");
        }
        let quote = |v: &Value| match v {
            Value::String(s) => format!("\"{}\"", s.replace('"', "\"\"")),
            Value::Null => String::new(),
            v => v.to_string(),
        };
        if self.rows.is_empty() {
            print(&(columns.join(",") + "\n"))?;
        }
        let cells: Vec<String> = columns.iter().map(|c| quote(object.get(*c).unwrap_or(&Value::Null))).collect();
        print(&(cells.join(",") + "\n"))
    }

    pub fn finish(self) -> Result<()> {
        match self.format {
            Format::Json => {
                let text = serde_json::to_string_pretty(&self.rows).map_err(|e| Error::failed(e.to_string()))?;
                print(&(text + "\n"))
            }
            _ => Ok(()),
        }
    }
}

/// Mean and sample standard deviation.
fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    if values.len() < 2 {
        return (mean, 0.0);
    }
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_deviations() {
        assert_eq!(mean_and_deviation(&[1.0, 3.0]), (2.0, 2.0f64.sqrt()));
        assert_eq!(mean_and_deviation(&[5.0]), (5.0, 0.0));
    }
}
