//! Flags of answers, of one and of many.

use std::path::PathBuf;

use clap::{ArgAction, Args};

#[derive(Debug, Args)]
pub struct AnswerArgs {
    /// System prompt [-sys]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system_prompt: Option<String>,
    /// System prompt from a file [-sysf]
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    pub system_prompt_file: Option<PathBuf>,
    /// Tokens to generate; -1 = until the model ends, -2 = until the context is full
    #[arg(long, alias = "n-predict", short = 'n', value_name = "N", default_value_t = -1, allow_hyphen_values = true)]
    pub predict: i64,
    /// End the answer before this text (repeatable) [-r]
    ///
    /// The text itself is no part of the answer.
    #[arg(long, alias = "reverse-prompt", short = 'r', value_name = "TEXT", action = ArgAction::Append, allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// What a model thinks before it answers: show, dim, hide, off, auto
    ///
    /// auto is dim on a terminal; a pipe gets the answer alone, and the object of --output-format json has it as reasoning. off lets
    /// the model answer at once: its template is told (enable_thinking), and thoughts that begin anyway end where they begin.
    #[arg(long, value_name = "HOW", default_value = "auto")]
    pub reasoning: String,
    /// Tokens that a model may think before it answers; -1 = any number
    ///
    /// Then the mark comes that ends the thoughts, and the answer begins. Ctrl-\\ does that at any time.
    #[arg(long, value_name = "N", default_value_t = -1, allow_hyphen_values = true)]
    pub reasoning_budget: i64,
    /// The answer is JSON: an object or an array
    ///
    /// What a model thinks before it answers is no part of that. The prompt should ask for JSON, too: only tokens that fit are drawn,
    /// whatever the model wants to say. An answer that -n or the context cuts is marked as cut on stderr, and in the object of
    /// --output-format json.
    #[arg(long, overrides_with_all = ["json_schema", "grammar"])]
    pub json: bool,
    /// The answer is JSON that a schema describes: a file, or the schema itself [-j, -jf]
    ///
    /// A schema that nothing fits, or that has keywords which cannot be kept, is an error before the model is loaded.
    #[arg(
        long,
        alias = "json-schema-file",
        value_name = "FILE|SCHEMA",
        overrides_with_all = ["json", "grammar"],
        allow_hyphen_values = true
    )]
    pub json_schema: Option<String>,
    /// The answer fits a grammar in llama.cpp's notation (GBNF): a file, or the grammar itself
    #[arg(
        long,
        alias = "grammar-file",
        value_name = "FILE|GRAMMAR",
        overrides_with_all = ["json", "json_schema"],
        allow_hyphen_values = true
    )]
    pub grammar: Option<String>,
    /// Use the chat template [-cnv] [default: if the model has one]
    ///
    /// With a prompt and on a terminal, the chat begins with the prompt and goes on.
    #[arg(long, visible_alias = "instruct", alias = "chatml", overrides_with = "no_conversation")]
    pub conversation: bool,
    /// Complete the raw prompt, without a chat template [-no-cnv]
    ///
    /// Names of special tokens in it stand for the tokens.
    #[arg(long)]
    pub no_conversation: bool,
    /// A chat template (Jinja), or the name of a well-known one
    ///
    /// Known are chatml, llama2, llama3, mistral, zephyr, gemma and vicuna. pp-run show prints the one of a file.
    #[arg(long, value_name = "TEXT|NAME", allow_hyphen_values = true)]
    pub chat_template: Option<String>,
    /// A chat template (Jinja) in a file
    #[arg(long, value_name = "FILE", allow_hyphen_values = true, conflicts_with = "chat_template")]
    pub chat_template_file: Option<PathBuf>,
    /// Variables for the chat template, a JSON object
    #[arg(long, value_name = "JSON", allow_hyphen_values = true)]
    pub chat_template_kwargs: Option<String>,
    #[arg(long, hide = true, overrides_with = "no_jinja")]
    pub jinja: bool,
    #[arg(long, hide = true)]
    pub no_jinja: bool,
    /// Process escapes such as \n in -p, -r, --in-prefix and --in-suffix [default]
    ///
    /// They are never processed in files.
    #[arg(long, short = 'e', overrides_with = "no_escape")]
    pub escape: bool,
    /// Take them literally
    #[arg(long)]
    pub no_escape: bool,
    /// Print special tokens too [-sp]
    #[arg(long)]
    pub special: bool,
    /// Names of special tokens in your text stand for the tokens
    ///
    /// Otherwise text that is typed in a chat, or goes through a template, cannot smuggle in the model's control tokens.
    #[arg(long)]
    pub parse_special: bool,
    /// Prompts that are not UTF-8 are an error
    ///
    /// Otherwise texts in UTF-16 are read too, and what is neither is replaced by U+FFFD, with a warning.
    #[arg(long)]
    pub strict_utf8: bool,
}
