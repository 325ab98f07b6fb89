//! [`Progress`]: a bar on a terminal, nothing elsewhere.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A progress bar, if somebody can see it.
pub(super) struct Progress(Option<ProgressBar>);

impl Progress {
    /// Shows progress towards `total` bytes, or without an end if that is unknown.
    pub fn start(total: Option<u64>) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(10));
        let template = match total {
            Some(_) => "{bar:15} {percent:>3}%  {bytes_per_sec}  {msg}  ETA {eta}",
            None => "{spinner} {bytes}  {bytes_per_sec}  {msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self(Some(bar))
    }

    /// So many bytes of the input, as so many messages, are handed over.
    pub fn at(&self, bytes: u64, messages: u64) {
        if let Some(bar) = &self.0 {
            bar.set_position(bytes);
            bar.set_message(format!("{messages} messages"));
        }
    }

    /// Takes the bar away.
    pub fn end(self) {
        if let Some(bar) = self.0 {
            bar.finish_and_clear();
        }
    }
}
