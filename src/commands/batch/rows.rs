//! What is asked: rows of JSON, and what they change of the flags.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::chat::{Role, Turn};
use crate::commands::run::Options;
use crate::constraint::{Form, Source};
use crate::error::{Error, Result};

/// The rows of a file.
pub struct Rows(Vec<Row>);

/// One row.
pub struct Row {
    /// What tells it from other rows: a text or a number
    pub id: Value,
    fields: Result<Map<String, Value>>,
}

/// What a row asks for.
pub struct Question {
    /// The flags, and what the row says otherwise
    pub options: Options,
    /// The row's own system prompt
    pub system: Option<String>,
    /// What was said before
    pub before: Vec<Turn>,
    pub prompt: String,
}

impl Rows {
    /// The rows of a text, one in a line that is not empty. What is wrong with one is said when it is asked for.
    pub fn read(text: &str) -> Rows {
        let mut ids: HashMap<String, usize> = HashMap::new();
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let row = |(i, line): (usize, &str)| {
            let number = i + 1;
            let (mut id, mut fields) = (json!(number), fields_of(line));
            match fields.as_mut().ok().and_then(|f| f.shift_remove("id")) {
                None => {}
                Some(given @ (Value::String(_) | Value::Number(_))) => id = given,
                Some(_) => fields = Err(Error::malformed("'id' wants a text or a number")),
            }
            if let Some(first) = ids.insert(id.to_string(), number) {
                fields = Err(Error::malformed(format!("line {number}: the id is that of line {first}, too")));
            }
            Row { id, fields }
        };
        Rows(lines.map(row).collect())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn get(&self, i: usize) -> &Row {
        &self.0[i]
    }
}

fn fields_of(line: &str) -> Result<Map<String, Value>> {
    match serde_json::from_str(line) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(Error::malformed("the row is no object of JSON")),
        Err(e) => Err(Error::malformed(format!("the row is not JSON: {e}"))),
    }
}

impl Row {
    /// What the row says, as a text that is the same for the same fields.
    pub fn text(&self) -> String {
        self.fields.as_ref().map_or_else(ToString::to_string, |fields| json!(fields).to_string())
    }

    /// What the row asks for, by the flags `base` where it says nothing else.
    pub fn question(&self, base: &Options) -> Result<Question> {
        let mut fields = self.fields.clone()?;
        let mut text = |name: &str| match fields.shift_remove(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Error::malformed(format!("'{name}' wants a text"))),
        };
        let (prompt, system) = (text("prompt")?, text("system")?.or(text("system_prompt")?));
        let messages = fields.shift_remove("messages");
        let (mut before, prompt) = match (prompt, messages) {
            (Some(prompt), None) => (Vec::new(), prompt),
            (None, Some(messages)) => said(&messages)?,
            (None, None) => return Err(Error::malformed("the row has neither 'prompt' nor 'messages'")),
            (Some(_), Some(_)) => return Err(Error::malformed("the row has both 'prompt' and 'messages'")),
        };
        let first = before.first().filter(|t| t.message.role == Role::System).map(|t| t.message.content.clone());
        if first.is_some() {
            before.remove(0);
        }
        let system = match (system, first) {
            (Some(_), Some(_)) => {
                return Err(Error::malformed("'system' and a message of the system: use one of them"));
            }
            (system, first) => system.or(first),
        };
        Ok(Question { options: options(base, &fields)?, system, before, prompt })
    }
}

/// The messages before the last one, and that one, which is the user's.
fn said(messages: &Value) -> Result<(Vec<Turn>, String)> {
    let refused = || {
        Error::malformed(
            "'messages' wants a list of {\"role\": \"system\", \"user\" or \"assistant\", \"content\": a text}, the system's first, a question of \
             the user at its end",
        )
    };
    let turn = |message: &Value| {
        let fields = message.as_object().filter(|f| f.len() == 2)?;
        let role = match fields.get("role")?.as_str()? {
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            _ => return None,
        };
        Some(Turn::new(role, fields.get("content")?.as_str()?))
    };
    let turns: Option<Vec<Turn>> = messages.as_array().and_then(|m| m.iter().map(turn).collect());
    let mut turns = turns.ok_or_else(refused)?;
    let asked = turns.pop().filter(|t| t.message.role == Role::User).ok_or_else(refused)?;
    match turns.iter().skip(1).any(|t| t.message.role == Role::System) {
        true => Err(refused()),
        false => Ok((turns, asked.message.content)),
    }
}

/// The flags that a row's fields change.
fn options(base: &Options, fields: &Map<String, Value>) -> Result<Options> {
    if fields.is_empty() {
        return Ok(base.clone());
    }
    // Escapes of texts were processed when the row was read as JSON.
    let is_escaped = !base.settings.args.iter().any(|a| a == "--no-escape");
    let literal = |text: &str| if is_escaped { text.replace('\\', "\\\\") } else { text.to_owned() };
    let mut pairs: Vec<(&str, String)> = Vec::new();
    for (name, value) in fields {
        let is_text = ["stop", "dry_sequence_breaker"].contains(&name.as_str());
        let one = |value: &Value| match value {
            Value::String(text) if is_text => Ok(literal(text)),
            Value::String(text) => Ok(text.clone()),
            Value::Number(n) => Ok(n.to_string()),
            Value::Bool(on) => Ok(if *on { "on" } else { "off" }.to_owned()),
            _ => Err(Error::malformed(format!("'{name}' wants one value"))),
        };
        match value {
            Value::Object(_) | Value::Bool(_) if name == "json_schema" => pairs.push((name, value.to_string())),
            Value::Array(values) => {
                // The row's list takes the place of the one that the flags gave.
                pairs.push((name, String::new()));
                for value in values {
                    pairs.push((name, one(value)?));
                }
            }
            value => {
                if is_text {
                    pairs.push((name, String::new()));
                }
                pairs.push((name, one(value)?));
            }
        }
    }
    let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let (options, _) = (base.settings.change)(base, &pairs)?;
    match &options.form {
        // Who writes rows need not be who may read this machine's files.
        Some(Form::Schema(Source::File(_)) | Form::Grammar(Source::File(_))) if options.form != base.form => {
            Err(Error::malformed("a row has a schema or a grammar itself, and not the name of its file"))
        }
        _ => Ok(options),
    }
}
