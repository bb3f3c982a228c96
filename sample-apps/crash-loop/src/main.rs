//! `crash-loop`: a command that says what it is about to do and exits with 1, to show restarts and
//! their back-off.

fn main() {
    let pod = std::env::var("POD_NAME").unwrap_or_else(|_| "an unnamed Pod".to_owned());
    eprintln!("{pod}: giving up");
    std::process::exit(1);
}
