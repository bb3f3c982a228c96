//! Checksums and base64.

use base64_crate::Engine as _;
use base64_crate::engine::general_purpose::STANDARD;
use md5::Md5;
use sha2::{Digest, Sha256, Sha512};

use crate::command::{Command, Failure, On, Outcome};

/// What is read at once.
const CHUNK: usize = 64 << 10;
/// Where lines of base64 end.
const WIDTH: usize = 76;

pub async fn sha256sum(command: Command) -> Outcome {
    sums::<Sha256>(command).await
}

pub async fn sha512sum(command: Command) -> Outcome {
    sums::<Sha512>(command).await
}

pub async fn md5sum(command: Command) -> Outcome {
    sums::<Md5>(command).await
}

async fn sums<D: Digest>(command: Command) -> Outcome {
    let checks = command.args.iter().any(|word| word == "-c" || word == "--check");
    let names: Vec<String> = command
        .args
        .iter()
        .filter(|word| !word.starts_with('-') || *word == "-")
        .cloned()
        .collect();
    let mut code = 0;
    for name in command.inputs(&names) {
        if !checks {
            let sum = sum::<D>(&command, &name).await?;
            command.print(format!("{sum}  {name}\n")).await?;
            continue;
        }
        let list = command.open(&name)?.rest().await.on(&name)?;
        for line in String::from_utf8_lossy(&list).lines() {
            let Some((wanted, file)) = line.split_once(char::is_whitespace) else { continue };
            let file = file.trim_start().trim_start_matches('*');
            let found = sum::<D>(&command, file).await?;
            let verdict = if found == wanted { "OK" } else { "FAILED" };
            code |= i32::from(found != wanted);
            command.print(format!("{file}: {verdict}\n")).await?;
        }
    }
    Ok(code)
}

async fn sum<D: Digest>(command: &Command, name: &str) -> Result<String, Failure> {
    let input = command.open(name)?;
    let mut digest = D::new();
    loop {
        let chunk = input.chunk(CHUNK).await.on(name)?;
        if chunk.is_empty() {
            let bytes = digest.finalize();
            return Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        digest.update(&chunk);
    }
}

pub async fn base64(command: Command) -> Outcome {
    let mut decodes = false;
    let mut width = WIDTH;
    let mut names = Vec::new();
    let mut words = command.args.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "-d" | "--decode" | "-D" => decodes = true,
            "-w" => {
                let text = words.next().map_or("", String::as_str);
                width = text.parse().map_err(|_| Failure::usage("-w needs a number"))?;
            }
            "-w0" => width = 0,
            name => names.push(name.to_owned()),
        }
    }
    let name = command.inputs(&names).remove(0);
    let text = command.open(&name)?.rest().await.on(&name)?;
    if decodes {
        let compact: Vec<u8> =
            text.into_iter().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let bytes = STANDARD.decode(compact).map_err(|_| Failure::new("invalid input"))?;
        command.print(bytes).await?;
        return Ok(0);
    }
    let encoded = STANDARD.encode(text);
    if width == 0 {
        command.print(encoded).await?;
        return Ok(0);
    }
    for line in encoded.as_bytes().chunks(width) {
        command.print([line, b"\n"].concat()).await?;
    }
    Ok(0)
}
