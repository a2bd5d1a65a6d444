//! The width of a terminal, and lines that are broken to fit in it.

/// Columns that the terminal behind a stream has now; `None` if it is no terminal, or does not say.
#[cfg(unix)]
pub fn columns(stream: impl std::os::fd::AsFd) -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(stream).ok()?;
    Some(usize::from(size.ws_col)).filter(|&n| n > 0)
}

/// Columns that the console has now.
#[cfg(not(unix))]
pub fn columns<T>(_: T) -> Option<usize> {
    crossterm::terminal::size().ok().map(|(columns, _)| usize::from(columns)).filter(|&n| n > 0)
}

/// A line broken between words at this width; `indent` begins each of its further lines.
pub fn fill(line: &str, width: Option<usize>, indent: &str) -> String {
    // In fewer columns there is no room for words.
    match width.filter(|&n| n >= 20) {
        Some(width) => textwrap::fill(line, textwrap::Options::new(width).subsequent_indent(indent)),
        None => line.to_owned(),
    }
}
