// Whether programs stay within a call's tensors. The code is in host memory.
#pragma once

#include "args.h"
#include "instructions.h"

namespace diffast {

// What an operand is; see OPERANDS of diffast/ops/schema.py.
enum Kind : uint8_t { kUnused, kRegister, kOfConstants, kColumn, kRow, kOut, kElement, kKinds };

struct Operands {
  Kind a, b, c;
};

constexpr Operands operands_of(int opcode) {
  switch (opcode) {
    case kConstant:
      return {kOfConstants, kUnused, kUnused};
    case kInput:
      return {kColumn, kUnused, kUnused};
    case kAdd:
    case kSub:
    case kMul:
    case kDiv:
    case kAtan2:
    case kMinimum:
    case kMaximum:
    case kLt:
    case kLe:
    case kGt:
    case kGe:
    case kEq:
    case kAnd:
    case kOr:
      return {kRegister, kRegister, kUnused};
    case kWhere:
      return {kRegister, kRegister, kRegister};
    case kLookup:
      return {kRow, kRegister, kRegister};
    case kStore:
      return {kOut, kElement, kRegister};
    default:
      return {kRegister, kUnused, kUnused};
  }
}

struct OperandTable {
  Operands of[kOpcodes];
  constexpr OperandTable() : of() {
    for (int opcode = 0; opcode < kOpcodes; ++opcode) of[opcode] = operands_of(opcode);
  }
};
constexpr OperandTable kOperands;

// Whether every instruction of a program stays within the call's tensors, and reads registers that
// the program has written.
inline bool program_fits(const EvaluateArgs& a, int64_t program) {
  const int64_t first = a.starts[program], end = a.starts[program + 1];
  if (first < 0 || first > end || end > a.instructions) return false;
  bool written[kMaxRegisters] = {};
  const int64_t size[kKinds] = {
      INT64_MAX, a.registers, a.constant_count, a.columns, a.pieces ? a.fields : 0, a.outs, 0};
  const auto fits = [&](Kind kind, int32_t value) {
    if (kind == kUnused) return true;
    if (value < 0 || value >= size[kind]) return false;
    return kind != kRegister || written[value];
  };
  for (int64_t i = first; i < end; ++i) {
    const int32_t* line = a.code + i * kInstructionWords;
    if (uint32_t(line[0]) >= uint32_t(kOpcodes)) return false;
    const Operands kinds = kOperands.of[line[0]];
    if (!fits(kinds.a, line[2]) || !fits(kinds.c, line[4])) return false;
    if (line[0] == kStore) {
      if (line[3] < 0 || (a.samples && line[3] >= a.out[line[2]].elements)) return false;
      continue;
    }
    if (!fits(kinds.b, line[3]) || (line[0] == kPiece && a.pieces == 0)) return false;
    if (uint32_t(line[1]) >= uint32_t(a.registers)) return false;
    written[line[1]] = true;
  }
  return true;
}

}  // namespace diffast
