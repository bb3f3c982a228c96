//! `batch`: a command that computes and ends. It counts the primes below its first argument
//! (default 1,000,000) with the sieve of Eratosthenes, prints the count, and exits with 0.

/// The sieve takes one byte a number, so this bounds its memory to 50 MB.
const LIMIT_MAX: usize = 50_000_000;

fn main() {
    let argument = std::env::args().nth(1).unwrap_or_else(|| "1000000".to_owned());
    let limit = match argument.parse::<usize>() {
        Ok(limit) if limit <= LIMIT_MAX => limit,
        _ => {
            eprintln!("batch: want a number up to {LIMIT_MAX}, got {argument:?}");
            std::process::exit(2);
        }
    };
    println!("{} primes below {limit}", primes_below(limit));
}

fn primes_below(limit: usize) -> usize {
    let mut composite = vec![false; limit];
    let mut count = 0;
    for number in 2..limit {
        if composite[number] {
            continue;
        }
        count += 1;
        // A square beyond 32 bits is beyond the limit too.
        let mut multiple = number.saturating_mul(number);
        while multiple < limit {
            composite[multiple] = true;
            multiple += number;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::primes_below;

    #[test]
    fn counts_as_the_tables_of_primes_do() {
        for (limit, count) in [(0, 0), (2, 0), (3, 1), (10, 4), (100, 25), (1_000_000, 78_498)] {
            assert_eq!(primes_below(limit), count, "below {limit}");
        }
    }
}
