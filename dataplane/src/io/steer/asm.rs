//! An assembler for BPF, as far as the steering programs need it: the instruction set of the
//! kernel's `Documentation/bpf/standardization/instruction-set.rst`, with labels.
//!
//! Assembled here rather than compiled from C so that building needs no clang and the program is
//! read where it is loaded.

use std::os::fd::RawFd;

use crate::io::sys::bpf::Instruction;

/// A register. `R0` returns results, `R1`–`R5` are arguments and lost in calls, `R6`–`R9` stay,
/// `R10` points behind the stack.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub(super) enum Reg {
    R0,
    R1,
    R2,
    R3,
    R4,
    R6 = 6,
    R7,
    R8,
    R9,
    R10,
}

/// Width of a load or store.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub(super) enum Size {
    U32 = 0x00,
    U16 = 0x08,
    U8 = 0x10,
    U64 = 0x18,
}

/// Arithmetic, 64 bits wide.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub(super) enum Alu {
    Add = 0x00,
    Mul = 0x20,
    And = 0x50,
    Shl = 0x60,
    Shr = 0x70,
    Mov = 0xb0,
}

/// Condition of a jump, unsigned.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub(super) enum Cond {
    Equal = 0x10,
    NotEqual = 0x50,
    Less = 0xa0,
    /// Any of the bits.
    Set = 0x40,
}

/// Functions of the kernel.
#[derive(Debug, Clone, Copy)]
#[repr(i32)]
pub(super) enum Helper {
    MapLookup = 1,
    SkbLoadBytes = 26,
}

const CLASS_LDX_MEM: u8 = 0x61;
const CLASS_STX_MEM: u8 = 0x63;
const CLASS_ALU64: u8 = 0x07;
const CLASS_JMP: u8 = 0x05;
const SOURCE_REGISTER: u8 = 0x08;
const LOAD_IMMEDIATE_64: u8 = 0x18;
const TO_BIG_ENDIAN: u8 = 0xdc;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// `BPF_PSEUDO_MAP_FD`: the immediate is the descriptor of a map.
const PSEUDO_MAP_FD: u8 = 1;

/// A place to jump to, forward only: set by [`Assembler::bind`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Label(usize);

/// A program in the making.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    code: Vec<Instruction>,
    labels: Vec<Option<usize>>,
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    /// A label that is not bound yet.
    pub(super) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Lets jumps to `label` go to the next instruction.
    pub(super) fn bind(&mut self, label: Label) {
        let here = self.code.len();
        if let Some(slot) = self.labels.get_mut(label.0) {
            *slot = Some(here);
        }
    }

    /// `dst = dst op value`.
    pub(super) fn alu(&mut self, op: Alu, dst: Reg, value: i32) {
        self.push(CLASS_ALU64 | op as u8, dst as u8, 0, 0, value);
    }

    /// `dst = dst op src`.
    pub(super) fn alu_reg(&mut self, op: Alu, dst: Reg, src: Reg) {
        self.push(CLASS_ALU64 | SOURCE_REGISTER | op as u8, dst as u8, src as u8, 0, 0);
    }

    /// `dst = value`.
    pub(super) fn set(&mut self, dst: Reg, value: i32) {
        self.alu(Alu::Mov, dst, value);
    }

    /// `dst = src`.
    pub(super) fn copy(&mut self, dst: Reg, src: Reg) {
        self.alu_reg(Alu::Mov, dst, src);
    }

    /// Turns 16 bits that were loaded as they came off the wire into a number.
    pub(super) fn ntohs(&mut self, dst: Reg) {
        self.push(TO_BIG_ENDIAN, dst as u8, 0, 0, 16);
    }

    /// `dst = *(base + offset)`.
    pub(super) fn load(&mut self, size: Size, dst: Reg, base: Reg, offset: i16) {
        self.push(CLASS_LDX_MEM | size as u8, dst as u8, base as u8, offset, 0);
    }

    /// `*(base + offset) = src`.
    pub(super) fn store(&mut self, size: Size, base: Reg, offset: i16, src: Reg) {
        self.push(CLASS_STX_MEM | size as u8, base as u8, src as u8, offset, 0);
    }

    /// `dst` = the map.
    pub(super) fn load_map(&mut self, dst: Reg, map: RawFd) {
        self.push(LOAD_IMMEDIATE_64, dst as u8, PSEUDO_MAP_FD, 0, map);
        self.push(0, 0, 0, 0, 0);
    }

    /// Calls a function of the kernel.
    pub(super) fn call(&mut self, helper: Helper) {
        self.push(CALL, 0, 0, 0, helper as i32);
    }

    /// Goes on at `to`.
    pub(super) fn jump(&mut self, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(CLASS_JMP, 0, 0, 0, 0);
    }

    /// Goes on at `to` if `left cond right`.
    pub(super) fn jump_if(&mut self, left: Reg, cond: Cond, right: i32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(CLASS_JMP | cond as u8, left as u8, 0, 0, right);
    }

    /// Goes on at `to` if `left cond right`.
    pub(super) fn jump_if_reg(&mut self, left: Reg, cond: Cond, right: Reg, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(CLASS_JMP | SOURCE_REGISTER | cond as u8, left as u8, right as u8, 0, 0);
    }

    /// Ends the program with `value`.
    pub(super) fn exit(&mut self, value: i32) {
        self.set(Reg::R0, value);
        self.push(EXIT, 0, 0, 0, 0);
    }

    /// The finished program; `None` when a jump has no place to go to.
    pub(super) fn finish(mut self) -> Option<Vec<Instruction>> {
        for (at, label) in self.jumps {
            let target = (*self.labels.get(label.0)?)?;
            // Counted from the next instruction.
            let distance = target.checked_sub(at + 1)?;
            self.code.get_mut(at)?.offset = i16::try_from(distance).ok()?;
        }
        Some(self.code)
    }

    fn push(&mut self, code: u8, dst: u8, src: u8, offset: i16, immediate: i32) {
        // Two bit fields, whose order is that of the machine.
        let registers =
            if cfg!(target_endian = "little") { src << 4 | dst } else { dst << 4 | src };
        self.code.push(Instruction { code, registers, offset, immediate });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_as_the_kernel_reads() {
        let mut asm = Assembler::default();
        let end = asm.label();
        asm.load(Size::U32, Reg::R2, Reg::R1, 20);
        asm.jump_if(Reg::R2, Cond::NotEqual, 7, end);
        asm.load_map(Reg::R1, 5);
        asm.bind(end);
        asm.exit(-1);
        let bytes: Vec<[u8; 8]> = asm
            .finish()
            .unwrap()
            .into_iter()
            .map(|i| {
                let [a, b] = i.offset.to_le_bytes();
                let [c, d, e, f] = i.immediate.to_le_bytes();
                [i.code, i.registers, a, b, c, d, e, f]
            })
            .collect();
        // As `llvm-mc -triple bpfel` encodes: r2 = *(u32 *)(r1 + 20); if r2 != 7 goto +2;
        // r1 = map[5] ll; r0 = -1; exit.
        assert_eq!(
            bytes,
            [
                [0x61, 0x12, 20, 0, 0, 0, 0, 0],
                [0x55, 0x02, 2, 0, 7, 0, 0, 0],
                [0x18, 0x11, 0, 0, 5, 0, 0, 0],
                [0; 8],
                [0xb7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
                [0x95, 0, 0, 0, 0, 0, 0, 0],
            ]
        );
    }

    #[test]
    fn a_jump_to_nowhere_or_backward_is_no_program() {
        let mut asm = Assembler::default();
        let nowhere = asm.label();
        asm.jump(nowhere);
        assert!(asm.finish().is_none());
        let mut asm = Assembler::default();
        let back = asm.label();
        asm.bind(back);
        asm.jump(back);
        assert!(asm.finish().is_none());
    }
}
