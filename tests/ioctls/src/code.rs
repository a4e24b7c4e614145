//! A64 code for small guests, with the MMU off.

/// Instructions, one behind the other.
#[derive(Debug, Default)]
pub struct Code(Vec<u32>);

impl Code {
    /// All of them.
    pub fn words(&self) -> &[u32] {
        &self.0
    }

    /// How many there are.
    pub fn here(&self) -> usize {
        self.0.len()
    }

    fn push(&mut self, word: u32) -> &mut Self {
        self.0.push(word);
        self
    }

    /// A constant into Xd: MOVZ and three MOVKs.
    pub fn load(&mut self, d: u32, value: u64) -> &mut Self {
        for half in 0..4 {
            let operation = if half == 0 { 0xd280_0000 } else { 0xf280_0000 };
            let part = (value >> (16 * half)) as u32 & 0xffff;
            self.push(operation | half << 21 | part << 5 | d);
        }
        self
    }

    /// STR Xt, [Xn]
    pub fn store(&mut self, t: u32, n: u32) -> &mut Self {
        self.push(0xf900_0000 | n << 5 | t)
    }

    /// LDR Xt, [Xn]
    pub fn fetch(&mut self, t: u32, n: u32) -> &mut Self {
        self.push(0xf940_0000 | n << 5 | t)
    }

    /// A function of the hypervisor's with x1, by HVC; x2 and x3 are zero for it, and x1 to x3 as before behind it. Its
    /// answer is in x0.
    pub fn call(&mut self, function: u64, argument: u64) -> &mut Self {
        /// MOV Xd, Xm.
        const fn moved(d: u32, m: u32) -> u32 {
            0xaa00_03e0 | m << 16 | d
        }
        for (to, from) in [(11, 1), (12, 2), (13, 3)] {
            self.push(moved(to, from));
        }
        self.load(0, function).load(1, argument).load(2, 0).load(3, 0).push(0xd400_0002);
        for (to, from) in [(1, 11), (2, 12), (3, 13)] {
            self.push(moved(to, from));
        }
        self
    }

    /// B, backwards, to an instruction that is there.
    pub fn branch(&mut self, to: usize) -> &mut Self {
        let back = (to as i32 - self.0.len() as i32) as u32 & 0x3ff_ffff;
        self.push(0x1400_0000 | back)
    }

    /// B .
    pub fn stay(&mut self) -> &mut Self {
        let here = self.here();
        self.branch(here)
    }
}
