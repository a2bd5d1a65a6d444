//! The parts of libllama that pp-run uses: its vocabularies (tokenizer), and whole models: to run what pp-run has no graph for, as an
//! oracle in tests, and as the baseline of benchmarks.

use std::ffi::{CStr, CString, c_char, c_void};
use std::ops::ControlFlow;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once};

use llama_cpp_sys_2 as sys;

use crate::device::Device;
use crate::exec::thread_count;
use crate::types::Type;

/// What libllama and ggml last called an error.
static LAST_ERROR: Mutex<String> = Mutex::new(String::new());

/// Starts ggml and libllama once, and keeps them from writing to stderr.
pub(crate) fn start() {
    static START: Once = Once::new();
    START.call_once(|| {
        crate::crash::watch();
        // SAFETY: the callback is a function of the right type and needs no data.
        unsafe { sys::llama_log_set(Some(log), std::ptr::null_mut()) };
        // SAFETY: called once, before everything else.
        unsafe { sys::llama_backend_init() };
    });
}

/// Keeps errors, drops the rest.
unsafe extern "C" fn log(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if level != sys::GGML_LOG_LEVEL_ERROR || text.is_null() {
        return;
    }
    // SAFETY: ggml passes a C string that lives during the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let mut last = LAST_ERROR.lock().unwrap_or_else(|e| e.into_inner());
    // The first error of a chain says what happened.
    if last.is_empty() {
        *last = text.trim().to_owned();
    }
}

fn clear_error() {
    LAST_ERROR.lock().unwrap_or_else(|e| e.into_inner()).clear();
}

fn take_error() -> LlamaError {
    let text = std::mem::take(&mut *LAST_ERROR.lock().unwrap_or_else(|e| e.into_inner()));
    LlamaError(if text.is_empty() { "libllama gives no reason".to_owned() } else { text })
}

/// Why libllama refused; its own words.
#[derive(Debug, Clone)]
pub struct LlamaError(pub String);

/// Number of a token.
pub type Token = i32;

/// The tokenizer of a model.
#[derive(Debug)]
pub struct Vocab {
    model: NonNull<sys::llama_model>,
}

// SAFETY: libllama never changes a vocabulary after loading it, and its functions on one take it as const.
unsafe impl Send for Vocab {}
// SAFETY: as above.
unsafe impl Sync for Vocab {}

impl Drop for Vocab {
    fn drop(&mut self) {
        // SAFETY: this owner loaded the model and frees it once.
        unsafe { sys::llama_model_free(self.model.as_ptr()) }
    }
}

impl Vocab {
    /// Loads the vocabulary of a GGUF file in memory that has metadata and no tensors. The metadata must have been
    /// checked: libllama aborts on some faults.
    pub fn new(gguf: &[u8]) -> Result<Vocab, LlamaError> {
        start();
        clear_error();
        let file =
            open_memory(gguf).ok_or_else(|| LlamaError("the vocabulary cannot be handed over in memory".into()))?;
        // SAFETY: returns a struct by value.
        let mut params = unsafe { sys::llama_model_default_params() };
        params.vocab_only = true;
        params.load_mode = sys::LLAMA_LOAD_MODE_NONE;
        // SAFETY: the stream is open for reading, and its bytes outlive the call.
        let model = unsafe { sys::llama_model_load_from_file_ptr(file.cast(), params) };
        // SAFETY: the stream was opened above; libllama does not keep it.
        unsafe { libc::fclose(file) };
        Ok(Vocab { model: NonNull::new(model).ok_or_else(take_error)? })
    }

    pub(crate) fn as_ptr(&self) -> *const sys::llama_vocab {
        // SAFETY: the model is live.
        unsafe { sys::llama_model_get_vocab(self.model.as_ptr()) }
    }

    pub fn n_tokens(&self) -> usize {
        // SAFETY: the vocabulary is live.
        usize::try_from(unsafe { sys::llama_vocab_n_tokens(self.as_ptr()) }).unwrap_or(0)
    }

    /// Tokens of `text`. `add_special` adds what the model wants around a text (BOS, EOS); `parse_special` reads the
    /// names of control tokens as these tokens. `None` if the text is longer than libllama can count.
    pub fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Option<Vec<Token>> {
        let length = i32::try_from(text.len()).ok()?;
        // A token per byte is the most there can be, with a few special ones around.
        let mut tokens = vec![0; text.len() + 8];
        loop {
            let room = i32::try_from(tokens.len()).ok()?;
            // SAFETY: text and tokens are live slices of the given lengths.
            let n = unsafe {
                sys::llama_tokenize(
                    self.as_ptr(),
                    text.as_ptr().cast(),
                    length,
                    tokens.as_mut_ptr(),
                    room,
                    add_special,
                    parse_special,
                )
            };
            if n == i32::MIN {
                return None;
            }
            if n >= 0 {
                tokens.truncate(n as usize);
                return Some(tokens);
            }
            tokens.resize(n.unsigned_abs() as usize, 0);
        }
    }

    /// Bytes of a token; control tokens have none unless `special`. Empty for a number that is no token.
    pub fn piece(&self, token: Token, special: bool) -> Vec<u8> {
        if !self.contains(token) {
            return Vec::new();
        }
        let mut piece = vec![0u8; 32];
        loop {
            let room = i32::try_from(piece.len()).expect("pieces are short");
            // SAFETY: the token exists; piece is a live slice of the given length.
            let n =
                unsafe { sys::llama_token_to_piece(self.as_ptr(), token, piece.as_mut_ptr().cast(), room, 0, special) };
            if n >= 0 {
                piece.truncate(n as usize);
                return piece;
            }
            piece.resize(n.unsigned_abs() as usize, 0);
        }
    }

    fn contains(&self, token: Token) -> bool {
        usize::try_from(token).is_ok_and(|t| t < self.n_tokens())
    }

    /// Whether the token ends a generation.
    pub fn is_eog(&self, token: Token) -> bool {
        // SAFETY: the vocabulary is live; the token exists.
        self.contains(token) && unsafe { sys::llama_vocab_is_eog(self.as_ptr(), token) }
    }

    /// Whether the token takes white space away with it: that before it, and that after it.
    pub fn strips(&self, token: Token) -> [bool; 2] {
        if !self.contains(token) {
            return [false; 2];
        }
        // SAFETY: the vocabulary is live; the token exists.
        let attributes = unsafe { sys::llama_vocab_get_attr(self.as_ptr(), token) };
        [sys::LLAMA_TOKEN_ATTR_LSTRIP, sys::LLAMA_TOKEN_ATTR_RSTRIP].map(|flag| attributes & flag != 0)
    }

    /// Beginning of a text.
    pub fn bos(&self) -> Option<Token> {
        // SAFETY: the vocabulary is live.
        Some(unsafe { sys::llama_vocab_bos(self.as_ptr()) }).filter(|&t| t >= 0)
    }

    /// End of a text.
    pub fn eos(&self) -> Option<Token> {
        // SAFETY: the vocabulary is live.
        Some(unsafe { sys::llama_vocab_eos(self.as_ptr()) }).filter(|&t| t >= 0)
    }

    /// Whether texts begin with BOS.
    pub fn add_bos(&self) -> bool {
        // SAFETY: the vocabulary is live.
        unsafe { sys::llama_vocab_get_add_bos(self.as_ptr()) }
    }

    /// Whether texts end with EOS.
    pub fn add_eos(&self) -> bool {
        // SAFETY: the vocabulary is live.
        unsafe { sys::llama_vocab_get_add_eos(self.as_ptr()) }
    }
}

/// Whether libllama knows an architecture by this name: it loads a file of one that has nothing else.
pub fn knows(architecture: &str) -> bool {
    let string = |s: &str| [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat();
    let entry = |key: &str, value: &str| [string(key), 8u32.to_le_bytes().to_vec(), string(value)].concat();
    let mut gguf = [&b"GGUF"[..], &3u32.to_le_bytes(), &0u64.to_le_bytes(), &2u64.to_le_bytes()].concat();
    gguf.extend(entry("general.architecture", architecture));
    gguf.extend(entry("tokenizer.ggml.model", "no_vocab"));
    gguf.resize(gguf.len().next_multiple_of(32), 0);
    Vocab::new(&gguf).is_ok()
}

/// The versions of libllama and ggml.
pub fn versions() -> String {
    // SAFETY: takes nothing, and returns a C string that is part of the program.
    let llama = unsafe { CStr::from_ptr(sys::llama_version()) };
    // SAFETY: as above.
    let ggml = unsafe { CStr::from_ptr(sys::ggml_version()) };
    format!("libllama {}, ggml {}", llama.to_string_lossy(), ggml.to_string_lossy())
}

/// A stream that reads the bytes.
#[cfg(unix)]
fn open_memory(bytes: &[u8]) -> Option<*mut libc::FILE> {
    // SAFETY: opened for reading only, so the bytes are not written; the caller keeps them while the stream is open.
    let file = unsafe { libc::fmemopen(bytes.as_ptr().cast_mut().cast(), bytes.len(), c"rb".as_ptr()) };
    (!file.is_null()).then_some(file)
}

/// A temporary file with the bytes; it is gone when it is closed.
#[cfg(not(unix))]
fn open_memory(bytes: &[u8]) -> Option<*mut libc::FILE> {
    // SAFETY: takes nothing.
    let file = unsafe { libc::tmpfile() };
    if file.is_null() {
        return None;
    }
    // SAFETY: the bytes are a live slice; the stream is open.
    let n = unsafe { libc::fwrite(bytes.as_ptr().cast(), 1, bytes.len(), file) };
    // SAFETY: the stream is open.
    unsafe { libc::rewind(file) };
    (n == bytes.len()).then_some(file)
}

/// A model in libllama.
#[derive(Debug)]
pub struct Model {
    ptr: NonNull<sys::llama_model>,
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: this owner loaded the model and frees it once; contexts borrow it.
        unsafe { sys::llama_model_free(self.ptr.as_ptr()) }
    }
}

fn state_flags(only_state: bool) -> sys::llama_state_seq_flags {
    // LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY: a macro, which bindings do not have.
    if only_state { 1 } else { 0 }
}

/// Settings of a libllama context; those not here are libllama's defaults.
#[derive(Debug, Clone)]
pub struct ContextParams {
    /// Context of all sequences together.
    pub n_ctx: u32,
    /// The most tokens that [`Context::decode`] takes.
    pub n_batch: u32,
    /// The most tokens that are computed at once.
    pub n_ubatch: u32,
    pub n_seq_max: u32,
    /// Threads for batches of one token.
    pub n_threads: u32,
    /// Threads for longer batches.
    pub n_threads_batch: u32,
    pub type_k: Type,
    pub type_v: Type,
    pub flash_attn: bool,
}

/// How libllama loads a model.
#[derive(Debug, Clone)]
pub struct ModelParams {
    /// So many layers, counted from the last, are on the GPU, if there is one.
    pub n_gpu_layers: u32,
    /// Weights are read where the file is mapped into memory; without it they are copied.
    pub mmap: bool,
    /// Weights of some types are rearranged for the CPU's kernels, in a copy. In a build for GPUs those of the CPU's layers else lie where a
    /// GPU reaches them as they are, which may compute long prompts.
    pub repack: bool,
}

impl Model {
    /// Loads a file as llama.cpp's tools do, layers on the CPU except the last `n_gpu_layers`.
    pub fn load(path: &Path, n_gpu_layers: u32) -> Result<Model, LlamaError> {
        let params = ModelParams { n_gpu_layers, mmap: true, repack: true };
        Model::load_watched(path, &params, &mut |_| ControlFlow::Continue(()))
    }

    /// Loads a file; `progress` is told the share done (0 to 1) and may stop the load, which is an error then.
    pub fn load_watched(
        path: &Path,
        ModelParams { n_gpu_layers, mmap, repack }: &ModelParams,
        progress: &mut dyn FnMut(f32) -> ControlFlow<()>,
    ) -> Result<Model, LlamaError> {
        unsafe extern "C" fn watch(share: f32, data: *mut c_void) -> bool {
            // SAFETY: the pointer is that of the reference below, which lives while the model is loaded, by the thread that waits for it.
            let progress = unsafe { &mut *data.cast::<&mut dyn FnMut(f32) -> ControlFlow<()>>() };
            progress(share).is_continue()
        }
        // libllama uses them all.
        for gpu in Device::gpus() {
            gpu.buffer_type();
        }
        clear_error();
        let path =
            CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| LlamaError("NUL in the path".into()))?;
        // SAFETY: returns a struct by value.
        let mut params = unsafe { sys::llama_model_default_params() };
        params.n_gpu_layers = i32::try_from(*n_gpu_layers).unwrap_or(i32::MAX);
        params.use_extra_bufts = *repack;
        params.no_host = *repack;
        if !mmap {
            params.load_mode = sys::LLAMA_LOAD_MODE_NONE;
        }
        let mut progress = progress;
        params.progress_callback = Some(watch);
        params.progress_callback_user_data = std::ptr::from_mut(&mut progress).cast();
        // SAFETY: the path is a C string; the parameters hold no dangling pointer, and what the callback is given outlives the call.
        let ptr = unsafe { sys::llama_model_load_from_file(path.as_ptr(), params) };
        Ok(Model { ptr: NonNull::new(ptr).ok_or_else(take_error)? })
    }

    /// The model is run for a user, from a file whose architecture nobody but libllama checks: what libllama asserts from now on, in this
    /// process, is reported as a fault of the file, with the exit code for malformed data.
    pub fn blame_its_file() {
        crate::crash::blame_the_model();
    }

    /// Number of tokens in the vocabulary.
    pub fn n_vocab(&self) -> usize {
        // SAFETY: the model is live.
        let vocab = unsafe { sys::llama_model_get_vocab(self.ptr.as_ptr()) };
        // SAFETY: the vocabulary belongs to the live model.
        usize::try_from(unsafe { sys::llama_vocab_n_tokens(vocab) }).unwrap_or(0)
    }

    /// Context length of the training.
    pub fn n_ctx_train(&self) -> u32 {
        // SAFETY: the model is live.
        u32::try_from(unsafe { sys::llama_model_n_ctx_train(self.ptr.as_ptr()) }).unwrap_or(0)
    }

    /// Whether it goes on with a text token by token: it is no encoder, and no model that writes all of a text at once.
    pub fn continues_texts(&self) -> bool {
        let model = self.ptr.as_ptr();
        // SAFETY: the model is live.
        let (encodes, decodes) = unsafe { (sys::llama_model_has_encoder(model), sys::llama_model_has_decoder(model)) };
        // SAFETY: the model is live.
        !encodes && decodes && !unsafe { sys::llama_model_is_diffusion(model) }
    }

    /// Whether it has a state that each token changes, so that tokens cannot be taken back one by one.
    pub fn has_state(&self) -> bool {
        let model = self.ptr.as_ptr();
        // SAFETY: the model is live.
        unsafe { sys::llama_model_is_recurrent(model) || sys::llama_model_is_hybrid(model) }
    }

    /// Whether it has layers that look back no further than a window.
    pub fn has_window(&self) -> bool {
        // SAFETY: the model is live.
        unsafe { sys::llama_model_n_swa(self.ptr.as_ptr()) > 0 }
    }
}

/// Why [`Context::compute`] did not come to an end.
#[derive(Debug, Clone)]
pub enum DecodeError {
    /// The interrupt was set
    Interrupted,
    /// Anything else; libllama's own words
    Failed(LlamaError),
}

/// A context of libllama, with a thread pool of its own as llama-bench gives it.
#[derive(Debug)]
pub struct Context<'m> {
    ptr: NonNull<sys::llama_context>,
    pool: NonNull<sys::ggml_threadpool>,
    model: &'m Model,
    /// Stops a computation
    interrupt: Option<Arc<AtomicBool>>,
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        // SAFETY: this owner made the context and frees it once, before the pool that it uses.
        unsafe { sys::llama_free(self.ptr.as_ptr()) };
        // SAFETY: this owner made the pool and frees it once; no context uses it any more.
        unsafe { sys::ggml_threadpool_free(self.pool.as_ptr()) };
    }
}

impl<'m> Context<'m> {
    /// A context with an empty cache.
    ///
    /// # Errors
    /// If libllama refuses the settings, or memory cannot be had.
    ///
    /// # Panics
    /// If a number of threads is 0 or above 512.
    pub fn new(model: &'m Model, params: &ContextParams) -> Result<Context<'m>, LlamaError> {
        clear_error();
        // SAFETY: returns a struct by value.
        let mut p = unsafe { sys::llama_context_default_params() };
        p.n_ctx = params.n_ctx;
        p.n_batch = params.n_batch;
        p.n_ubatch = params.n_ubatch;
        p.n_seq_max = params.n_seq_max;
        p.n_threads = thread_count(params.n_threads as usize);
        p.n_threads_batch = thread_count(params.n_threads_batch as usize);
        p.type_k = params.type_k.raw();
        p.type_v = params.type_v.raw();
        p.flash_attn_type =
            if params.flash_attn { sys::LLAMA_FLASH_ATTN_TYPE_ENABLED } else { sys::LLAMA_FLASH_ATTN_TYPE_DISABLED };
        p.kv_unified = params.n_seq_max == 1;
        // SAFETY: the model is live; the parameters hold no dangling pointer.
        let ptr = unsafe { sys::llama_init_from_model(model.ptr.as_ptr(), p) };
        let ptr = NonNull::new(ptr).ok_or_else(take_error)?;
        let n_threads = p.n_threads.max(p.n_threads_batch);
        // SAFETY: takes a number, returns a struct by value.
        let mut pool_params = unsafe { sys::ggml_threadpool_params_default(n_threads) };
        // SAFETY: the parameters are a live local.
        let pool = unsafe { sys::ggml_threadpool_new(&mut pool_params) };
        let pool = NonNull::new(pool).expect("threads can be started");
        // SAFETY: context and pool are live; the pool outlives the context (see `Drop`).
        unsafe { sys::llama_attach_threadpool(ptr.as_ptr(), pool.as_ptr(), pool.as_ptr()) };
        Ok(Context { ptr, pool, model, interrupt: None })
    }

    /// From now on a computation on the CPU stops soon after `interrupt` is set.
    pub fn set_interrupt(&mut self, interrupt: Arc<AtomicBool>) {
        unsafe extern "C" fn is_set(data: *mut c_void) -> bool {
            // SAFETY: the pointer is that of the flag which the context below keeps as long as it lives.
            unsafe { &*data.cast::<AtomicBool>() }.load(Ordering::Relaxed)
        }
        let data = Arc::as_ptr(&interrupt).cast_mut().cast();
        // SAFETY: the context is live; the flag is kept in it, and an atomic flag may be read by any thread.
        unsafe { sys::llama_set_abort_callback(self.ptr.as_ptr(), Some(is_set), data) };
        self.interrupt = Some(interrupt);
    }

    /// Tokens that the context holds.
    pub fn n_ctx(&self) -> usize {
        // SAFETY: the context is live.
        unsafe { sys::llama_n_ctx(self.ptr.as_ptr()) as usize }
    }

    /// Computes tokens `(token, position, sequence, logits wanted)`. Returns whether libllama succeeded.
    ///
    /// # Panics
    /// If there are more tokens than [`ContextParams::n_batch`].
    pub fn decode(&mut self, batch: &[(Token, i32, i32, bool)]) -> bool {
        self.compute(batch).is_ok()
    }

    /// The same, with the reason of a failure.
    ///
    /// # Panics
    /// As [`Context::decode`].
    pub fn compute(&mut self, batch: &[(Token, i32, i32, bool)]) -> Result<(), DecodeError> {
        clear_error();
        // SAFETY: the context is live.
        let n_batch = unsafe { sys::llama_n_batch(self.ptr.as_ptr()) };
        assert!(batch.len() <= n_batch as usize, "decode: {} tokens in a batch of {n_batch}", batch.len());
        let mut tokens: Vec<Token> = batch.iter().map(|b| b.0).collect();
        let mut pos: Vec<i32> = batch.iter().map(|b| b.1).collect();
        let mut seqs: Vec<i32> = batch.iter().map(|b| b.2).collect();
        let mut n_seq_id = vec![1i32; batch.len()];
        let mut seq_ids: Vec<*mut i32> = seqs.iter_mut().map(std::ptr::from_mut).collect();
        let mut logits: Vec<i8> = batch.iter().map(|b| i8::from(b.3)).collect();
        let batch = sys::llama_batch {
            n_tokens: i32::try_from(batch.len()).expect("batches are small"),
            token: tokens.as_mut_ptr(),
            embd: std::ptr::null_mut(),
            pos: pos.as_mut_ptr(),
            n_seq_id: n_seq_id.as_mut_ptr(),
            seq_id: seq_ids.as_mut_ptr(),
            logits: logits.as_mut_ptr(),
        };
        // SAFETY: the context is live; every array of the batch is a live vector of n_tokens elements.
        let status = unsafe { sys::llama_decode(self.ptr.as_ptr(), batch) };
        // SAFETY: the context is live.
        unsafe { sys::llama_synchronize(self.ptr.as_ptr()) };
        match status {
            0 => Ok(()),
            2 => Err(DecodeError::Interrupted),
            _ => Err(DecodeError::Failed(take_error())),
        }
    }

    /// Logits `[n_vocab]` of token `i` of the last batch, if they were wanted.
    pub fn logits(&self, i: usize) -> Option<&[f32]> {
        // SAFETY: the context is live.
        let ptr = unsafe { sys::llama_get_logits_ith(self.ptr.as_ptr(), i32::try_from(i).ok()?) };
        let ptr = NonNull::new(ptr)?;
        // SAFETY: libllama returns n_vocab floats that stay until the next call that takes the context mutably.
        Some(unsafe { std::slice::from_raw_parts(ptr.as_ptr(), self.model.n_vocab()) })
    }

    /// Lets the worker threads sleep until the next computation.
    pub fn pause(&self) {
        // SAFETY: the pool is live.
        unsafe { sys::ggml_threadpool_pause(self.pool.as_ptr()) };
    }

    /// Empties the cache.
    pub fn clear(&mut self) {
        // SAFETY: the memory belongs to the live context.
        unsafe { sys::llama_memory_clear(self.memory(), false) };
    }

    fn memory(&self) -> sys::llama_memory_t {
        // SAFETY: the context is live.
        unsafe { sys::llama_get_memory(self.ptr.as_ptr()) }
    }

    /// Forgets the tokens of sequence 0 from position `n` on. `false` if the model's memory cannot do that: it is unchanged then.
    pub fn forget_from(&mut self, n: i32) -> bool {
        // SAFETY: the memory belongs to the live context.
        unsafe { sys::llama_memory_seq_rm(self.memory(), 0, n, -1) }
    }

    /// Tokens that sequence 0's memory is of, by the last one's position.
    pub fn n_past(&self) -> usize {
        // SAFETY: the memory belongs to the live context.
        let last = unsafe { sys::llama_memory_seq_pos_max(self.memory(), 0) };
        usize::try_from(last).map_or(0, |last| last + 1)
    }

    /// Sequence 0's memory; with `only_state` only that of it which tokens cannot be taken back from.
    pub fn state(&mut self, only_state: bool) -> Vec<u8> {
        let flags = state_flags(only_state);
        // SAFETY: the context is live.
        let n = unsafe { sys::llama_state_seq_get_size_ext(self.ptr.as_ptr(), 0, flags) };
        let mut state = vec![0u8; n];
        // SAFETY: the context is live; the vector has n bytes.
        let n = unsafe { sys::llama_state_seq_get_data_ext(self.ptr.as_ptr(), state.as_mut_ptr(), n, 0, flags) };
        state.truncate(n);
        state
    }

    /// Makes sequence 0's memory what [`Context::state`] gave, of a context of the same model and settings; of layers with a window
    /// that is what the next token and a repetition of the last one look at. Returns whether libllama took it.
    pub fn set_state(&mut self, state: &[u8], only_state: bool) -> bool {
        let flags = state_flags(only_state);
        // SAFETY: the context is live. Whatever the bytes are, libllama reads none behind the slice (llama_io_read_host), and writes no
        // more rows of a tensor than the cells that it found free.
        let n = unsafe { sys::llama_state_seq_set_data_ext(self.ptr.as_ptr(), state.as_ptr(), state.len(), 0, flags) };
        n == state.len() && n > 0
    }
}
