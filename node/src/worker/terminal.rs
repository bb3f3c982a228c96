//! A terminal's line discipline, for guests that have no kernel to do it: pure.
//!
//! With `-t` the client's terminal is raw: each key arrives as it is typed, and nothing is shown
//! unless it is sent back. So the worker does what a terminal does in its usual (canonical) mode:
//! it collects a line, echoes it, lets it be edited, and gives it to the guest when it is complete.
//! Signals do not exist in WASI: what would be SIGINT ends the command, or is a byte of the input of
//! one that knows what to do with it (the toolbox).

/// A line longer than this takes no more bytes, as on Linux.
const LINE_BYTES_MAX: usize = 4096;

/// ^C
pub const INTERRUPT: u8 = 0x03;
const END: u8 = 0x04; // ^D
const BELL: u8 = 0x07;
const BACKSPACE: u8 = 0x08;
const KILL_LINE: u8 = 0x15; // ^U
const KILL_WORD: u8 = 0x17; // ^W
const DELETE: u8 = 0x7f;

/// The line that is being typed.
#[derive(Default)]
pub struct Terminal {
    line: Vec<u8>,
    /// The guest reads ^C itself.
    passes_interrupts: bool,
}

/// What came of some keys.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Typed {
    /// For the screen.
    pub echo: Vec<u8>,
    /// For the guest.
    pub give: Vec<u8>,
    /// The input has ended.
    pub ended: bool,
    /// The command is to be interrupted; what was typed after it is lost.
    pub interrupted: bool,
}

impl Terminal {
    /// For a guest that reads ^C itself, or not.
    pub fn new(passes_interrupts: bool) -> Terminal {
        Terminal { passes_interrupts, ..Terminal::default() }
    }

    /// Takes what was typed.
    pub fn typed(&mut self, bytes: &[u8]) -> Typed {
        let mut typed = Typed::default();
        for byte in bytes {
            match *byte {
                b'\r' | b'\n' => {
                    typed.give.append(&mut self.line);
                    typed.give.push(b'\n');
                    typed.echo.extend_from_slice(b"\r\n");
                }
                INTERRUPT => {
                    self.line.clear();
                    typed.echo.extend_from_slice(b"^C\r\n");
                    if !self.passes_interrupts {
                        typed.interrupted = true;
                        return typed;
                    }
                    typed.give.push(INTERRUPT);
                }
                END if self.line.is_empty() => {
                    typed.ended = true;
                    return typed;
                }
                END => typed.give.append(&mut self.line),
                BACKSPACE | DELETE => self.erase(&mut typed.echo),
                KILL_LINE => {
                    while !self.line.is_empty() {
                        self.erase(&mut typed.echo);
                    }
                }
                KILL_WORD => {
                    while self.line.last() == Some(&b' ') {
                        self.erase(&mut typed.echo);
                    }
                    while self.line.last().is_some_and(|last| *last != b' ') {
                        self.erase(&mut typed.echo);
                    }
                }
                _ if self.line.len() >= LINE_BYTES_MAX => typed.echo.push(BELL),
                byte => {
                    self.line.push(byte);
                    match is_hidden(byte) {
                        true => typed.echo.extend([b'^', byte ^ 0x40]),
                        false => typed.echo.push(byte),
                    }
                }
            }
        }
        typed
    }

    /// Takes the last character back, all bytes of it.
    fn erase(&mut self, echo: &mut Vec<u8>) {
        let Some(mut last) = self.line.pop() else {
            return;
        };
        let columns = if is_hidden(last) { 2 } else { 1 };
        while (0x80..0xc0).contains(&last) {
            let Some(before) = self.line.pop() else { break };
            last = before;
        }
        for _ in 0..columns {
            echo.extend([BACKSPACE, b' ', BACKSPACE]);
        }
    }
}

/// Control characters are shown as `^X`.
fn is_hidden(byte: u8) -> bool {
    byte < 0x20 && byte != b'\t'
}

/// What a guest prints, as a screen wants it: a new line begins at the left.
pub fn shown(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 16);
    for byte in bytes {
        if *byte == b'\n' {
            out.push(b'\r');
        }
        out.push(*byte);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Types the keys and tells what the guest got and what the screen got.
    fn check(keys: &str, give: &str, echo: &str) {
        let typed = Terminal::default().typed(keys.as_bytes());
        assert_eq!(String::from_utf8_lossy(&typed.give), give, "{keys:?}");
        assert_eq!(String::from_utf8_lossy(&typed.echo), echo, "{keys:?}");
    }

    #[test]
    fn lines_are_given_when_they_are_complete() {
        check("ls", "", "ls");
        check("ls\r", "ls\n", "ls\r\n");
        check("a\nb\r", "a\nb\n", "a\r\nb\r\n");
        check("a\u{4}", "a", "a");
    }

    #[test]
    fn lines_are_edited() {
        let back = "\u{8} \u{8}";
        check("lx\u{7f}s\r", "ls\n", &format!("lx{back}s\r\n"));
        check("\u{7f}a\r", "a\n", "a\r\n");
        check("ä\u{7f}b\r", "b\n", &format!("ä{back}b\r\n"));
        check("a\u{1b}\u{8}\r", "a\n", &format!("a^[{back}{back}\r\n"));
        check("ab\u{15}c\r", "c\n", &format!("ab{back}{back}c\r\n"));
        check("a bc \u{17}d\r", "a d\n", &format!("a bc {back}{back}{back}d\r\n"));
    }

    #[test]
    fn it_ends_and_interrupts() {
        let typed = Terminal::default().typed(b"\x04rest");
        assert_eq!(typed, Typed { ended: true, ..Typed::default() });
        let mut terminal = Terminal::default();
        let typed = terminal.typed(b"half\x03rest");
        assert!(typed.interrupted && typed.give.is_empty());
        assert_eq!(typed.echo, b"half^C\r\n");
        assert_eq!(terminal.typed(b"\r").give, b"\n");
        let typed = Terminal::new(true).typed(b"one\rhalf\x03two\r");
        assert_eq!((&typed.give[..], typed.interrupted), (&b"one\n\x03two\n"[..], false));
    }

    #[test]
    fn a_line_has_an_end() {
        let mut terminal = Terminal::default();
        let typed = terminal.typed(&[b'a'; LINE_BYTES_MAX + 1]);
        assert_eq!(typed.echo.last(), Some(&BELL));
        assert_eq!(terminal.typed(b"\r").give.len(), LINE_BYTES_MAX + 1);
    }

    #[test]
    fn screens_want_a_return() {
        assert_eq!(shown(b"a\nb\n"), b"a\r\nb\r\n");
    }
}
