//! YAML that means harm, and YAML that fell downstairs.

use super::tests::{SEED, parse, said};
use crate::api::AnyObject;

#[test]
fn yaml_that_explodes_is_refused() {
    let mut bomb = "a: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for i in 1..40 {
        bomb.push_str(&format!("b{i}: &a{i} [*a{p},*a{p},*a{p},*a{p},*a{p},*a{p},*a{p},*a{p}]\n", p = i - 1));
    }
    assert!(said(&parse(&bomb))[0].contains("anchors and aliases expand to more than"), "{:?}", said(&parse(&bomb)));
    for deep in [
        "[".repeat(200),
        "[".repeat(100_000),
        "{a: ".repeat(5000),
        "- ".repeat(50_000),
        (0..3000).map(|i| format!("{}a:\n", " ".repeat(i))).collect(),
    ] {
        assert!(parse(&deep).not_yaml);
    }
    let mut ladder = "a0: &a0 [x]\n".to_owned();
    for i in 1..200 {
        ladder.push_str(&format!("a{i}: &a{i} [*a{}]\n", i - 1));
    }
    assert!(said(&parse(&ladder))[0].contains("levels deep"));
    // Honest anchors work, and so do merges: what is written wins.
    let text = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: s}\nspec:\n  hosts: [a.b]\n  ports:\n  - &p {number: 80, name: http, protocol: HTTP}\n  \
                - {<<: *p, number: 81, name: other}\n";
    let parsed = parse(text);
    let AnyObject::ServiceEntry(entry) = &parsed.objects[0] else { panic!("{parsed:?}") };
    assert_eq!((entry.spec.ports[1].number, entry.spec.ports[1].protocol.as_str()), (81, "HTTP"));
}

/// A small generator of the same numbers every time (xorshift), so that a failure can be had again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % below.max(1) as u64).unwrap_or_default()
    }
}

#[test]
fn no_mutation_of_real_yaml_panics_or_is_refused_without_a_reason() {
    const SCRAPS: &[&str] = &[
        ":", "- ", "---\n", "\n", "\t", "[", "]", "{", "}", "&a ", "*a", "<<: ", "|\n", ">", "\"", "'", "!!str ",
        "!x ", "null", "~", "-1", "65536", "1e9", "é", "\u{feff}", "\0", "# ", "%", "? ", "...\n", "0s", "true", "  ",
    ];
    let mut dice = Dice(0x5eed_cafe_f00d_1234);
    for round in 0..3000 {
        let mut text: Vec<char> = SEED.chars().collect();
        for _ in 0..=dice.roll(6) {
            let at = dice.roll(text.len());
            match dice.roll(4) {
                0 => drop(text.drain(at..(at + dice.roll(40)).min(text.len()))),
                1 => drop(text.splice(at..at, SCRAPS[dice.roll(SCRAPS.len())].chars()).collect::<Vec<_>>()),
                2 => {
                    let piece: Vec<char> = text[at..(at + dice.roll(80)).min(text.len())].to_vec();
                    let to = dice.roll(text.len());
                    drop(text.splice(to..to, piece).collect::<Vec<_>>());
                }
                _ => text.truncate(at.max(1)),
            }
        }
        let text: String = text.iter().collect();
        let parsed = parse(&text);
        let lines = u32::try_from(text.split('\n').count()).unwrap() + 1;
        for refused in &parsed.refused {
            assert!(!refused.errors.is_empty(), "round {round}: refused without a reason:\n{text}");
            assert!(
                refused.errors.iter().all(|e| (1..=lines).contains(&e.line)),
                "round {round}: {:?}\n{text}",
                refused.errors
            );
        }
    }
}
