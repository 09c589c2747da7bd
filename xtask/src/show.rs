//! How a demonstration looks on a terminal: numbered scenes, commands, and what came of them.

use std::io::IsTerminal;

pub struct Show {
    scene: u32,
    colour: bool,
}

impl Show {
    pub fn new() -> Self {
        Self { scene: 0, colour: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub fn scene(&mut self, title: &str) {
        self.scene += 1;
        println!("\n{}", self.paint("1", &format!("{}. {title}", self.scene)));
    }

    pub fn say(&self, text: &str) {
        println!("   {text}");
    }

    /// A command as somebody in the pod would type it.
    pub fn command(&self, place: &str, line: &str) {
        println!("   {} {line}", self.paint("36", &format!("{place} $")));
    }

    /// What a command printed.
    pub fn output(&self, text: &str) {
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            println!("     {}", line.trim_end());
        }
    }

    /// A named finding, and whether it is what was promised.
    pub fn finding(&self, name: &str, text: &str) {
        println!("   {} {text}", self.paint("32", &format!("{name:<14}")));
    }
}
