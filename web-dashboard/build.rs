//! Says so when the dashboard is not built. It never runs npm: `make dashboard` does.

fn main() {
    println!("cargo::rerun-if-changed=dist");
    println!("cargo::rerun-if-env-changed=WHERRY_UI_REQUIRED");
    if std::path::Path::new("dist/index.html").exists() {
        return;
    }
    let missing = "web-dashboard/dist is not built: run `make dashboard`";
    if std::env::var_os("WHERRY_UI_REQUIRED").is_some() {
        println!("cargo::error={missing}");
    } else {
        println!("cargo::warning={missing}; the binary will say so at /ui/");
    }
}
