//! The table on stdout.

use super::asked::Asked;
use super::results::{Outcome, Run};
use crate::eval::{Estimate, Rules, estimate};

/// A row for each run and task, and one for the mean of a run's tasks.
pub struct Table {
    rules: Rules,
    rows: Vec<Row>,
}

struct Row {
    method: String,
    amount: String,
    task: String,
    n: usize,
    values: [Option<Estimate>; 2],
}

impl Table {
    pub fn new(rules: Rules) -> Table {
        Table { rules, rows: Vec::new() }
    }

    /// Adds a task of a run.
    pub fn add(&mut self, run: &Run, asked: &Asked, outcome: &Outcome) {
        let metrics = asked.task.form.metrics(self.rules);
        let value = |i: usize| metrics.get(i).map(|m| estimate(&asked.values(*m, &outcome.likelihoods)));
        self.rows.push(Row {
            method: run.method.unwrap_or("dense").to_owned(),
            amount: run.amount.clone(),
            task: asked.task.name.clone(),
            n: asked.n_questions(),
            values: [0, 1].map(value),
        });
    }

    /// All of it, as Markdown.
    pub fn text(&self) -> String {
        let names = match self.rules {
            Rules::LmEval => ["acc", "acc_norm"],
            Rules::Paper => ["csr_accuracy", "csr_accuracy_norm"],
        };
        let mut out = format!(
            "| method | ratio | task | questions | {} | {} |\n| --- | --- | --- | ---: | ---: | ---: |\n",
            names[0], names[1]
        );
        for of_run in self.rows.chunk_by(|a, b| (&a.method, &a.amount) == (&b.method, &b.amount)) {
            of_run.iter().for_each(|row| out.push_str(&row.text()));
            if of_run.len() > 1 {
                out.push_str(&mean(of_run).text());
            }
        }
        out
    }
}

/// The plain mean over a run's tasks, of a metric that all of them have.
fn mean(rows: &[Row]) -> Row {
    let of_tasks = |i: usize| rows.iter().map(|r| r.values[i].map(|v| v.mean)).collect::<Option<Vec<f64>>>();
    let value = |i: usize| of_tasks(i).map(|means| Estimate { error: None, ..estimate(&means) });
    Row {
        method: rows[0].method.clone(),
        amount: rows[0].amount.clone(),
        task: "mean of tasks".into(),
        n: rows.iter().map(|r| r.n).sum(),
        values: [0, 1].map(value),
    }
}

impl Row {
    fn text(&self) -> String {
        let value = |v: &Option<Estimate>| match v {
            None => String::new(),
            Some(Estimate { mean, error: None }) => format!("{mean:.4}"),
            Some(Estimate { mean, error: Some(error) }) => format!("{mean:.4} +/- {error:.4}"),
        };
        let [first, second] = self.values.each_ref().map(value);
        format!("| {} | {} | {} | {} | {first} | {second} |\n", self.method, self.amount, self.task, self.n)
    }
}
