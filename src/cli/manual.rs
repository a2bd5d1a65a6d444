//! What the help and the manual page say behind the flags.

/// What a reader of the whole help needs beside the flags. Lines have 70 columns at most and are indented: the manual page would fill
/// others.
pub const AFTER_HELP: &str = "\
EXAMPLES
  One answer; with a text from a pipe below the prompt:
    pp-run -m model.gguf -p \"Why is the sea salty?\"
    git diff | pp-run -m model.gguf -p \"Summarise:\"
  An answer for each row of a file, several at a time; and for each
  line by a shell, of which none is to be added:
    pp-run batch -m model.gguf -i prompts.jsonl -o answers.jsonl
    while read -r q; do
      pp-run -m model.gguf -p \"$q\" --no-stdin; done <questions
  A chat, in which /help lists the commands; the last one once more:
    pp-run -m model.gguf
    pp-run --continue
  One more question behind the last answer or chat of this folder:
    pp-run --continue -p \"and of Italy?\"
  A long text, read with a quarter of the weights left out; or, once
  that is measured, with as much as costs next to nothing:
    pp-run -m model.gguf -f long.txt --prune 0.25
    pp-run calibrate -m model.gguf
    pp-run -m model.gguf -f long.txt --prune auto
  JSON that fits a schema:
    pp-run -m model.gguf -p \"...\" --json-schema schema.json
  A second question to the same text, which is not processed again:
    pp-run -m model.gguf -f long.txt -p \"What is it about?\"
    pp-run -m model.gguf -f long.txt -p \"Who is Ann?\"
  The flags of a command:
    pp-run help bench

STATISTICS
  After an answer stderr has one line; here of -n 100 --prune 0.4:

  prompt 1064 tokens, 341.2 tok/s (probe 8%, pack 6%, compute 86%) |
  generated 100 tokens, 27.9 tok/s | first token 3.119 s |
  context 1163/1280 | peak memory 198.6 MiB |
  probe 104 of 1024 tokens, kept 66.2%; 40 tokens dense; answer on
  34.5 MiB of reduced weights made in 0.11 s |
  seed 1491112353 | logits fe6485c8ffba508d | limit

  probe   share of the prompt's time that finding what is kept took
  pack    share in which weights were packed for our own kernels
  kept    share of the blocks' weights that the pruned tokens ran on
  drafts  guessed tokens (--draft) that the answer went on with, and
          the steps that it took
  threads N of M: as few computed, as others used the processors
  drawn   as the file says: its general.sampling settings, said once
  logits  a hash of the last ones: equal where runs computed the same
  limit   why it ended: end_of_text, stop_string, limit (of -n; the
          answer was cut),
          context_full, interrupted

  Tokens that were kept of earlier runs or turns are counted as
  cached. A chat has a shorter line; /set verbose shows all numbers.

ENVIRONMENT
  PP_ARG_NAME
      any flag that the command line does not have, by its long name:
      PP_ARG_TOP_K=20, PP_ARG_NO_SAVE=1, PP_ARG_MODEL=model.gguf
  LLAMA_ARG_NAME
      after these llama.cpp's own: MODEL, N_PREDICT, CTX_SIZE, BATCH,
      UBATCH, THREADS, THREADS_BATCH, N_GPU_LAYERS, FLASH_ATTN,
      CACHE_TYPE_K, CACHE_TYPE_V, LOAD_MODE, CHAT_TEMPLATE,
      CHAT_TEMPLATE_FILE, TOP_K, TEMP, ROPE_FREQ_BASE, ROPE_FREQ_SCALE
  NO_COLOR, CLICOLOR_FORCE, TERM=dumb
      no colours; colours; no colours and no cursor control
  VISUAL, EDITOR
      the editor of Ctrl-G and /edit in a chat
  HOME, XDG_CONFIG_HOME, XDG_DATA_HOME, XDG_STATE_HOME,
  XDG_CACHE_HOME
      where the files below are

CONFIGURATION
  Answers and chats take what neither the command line nor the
  environment says from a TOML file with the flags' long names. Other
  commands do not read it. A name that is no flag is an error.

  top-k = 20
  no-save = true
  stop = [\"a\", \"b\"]
  model = \"/path/model.gguf\"

FILES
  ~/.config/pp-run/config.toml   the configuration
  ~/.local/share/pp-run/chats/   saved chats, one file each
  ~/.local/share/pp-run/answers/ the last 20 single answers, for
                                 --continue
  ~/.local/state/pp-run/history  what was typed in chats
  ~/.cache/pp-run/prompts/       long prompts, so that none is
                                 processed twice
  ~/.cache/pp-run/kv-types       what quantised KV caches cost models
  MODEL.ppcal                    what pp-run calibrate found, beside
                                 MODEL.gguf
  Models are looked for in ./models, ., ~/models,
  ~/.local/share/pp-run/models and the folders of llama.cpp, Hugging
  Face, LM Studio, GPT4All, Jan and ollama.

EXIT CODES
  0    success, or the reader of stdout closed the pipe
  1    the run failed
  2    wrong usage
  65   a damaged file, or a prompt longer than the context
  66   no such input, or it cannot be read
  69   a sound file that pp-run does not support
  70   a bug in pp-run
  71   not enough memory
  73   a file cannot be created
  74   reading or writing failed, or a file changed while in use
  130  interrupted (Ctrl-C)
  143  terminated";
