/* SPDX-License-Identifier: Apache-2.0 */
/* Lists of asm operands for instructions with up to 128 registers: MLA_NAMES_n is "%0, %1, ...",
 * and MLA_OPERANDS_n(c, r) is the operands c(r[0]), c(r[1]), ... that these names stand for. They
 * come first in the asm statement, so that their numbers are the same in every instruction. */
#ifndef MLA_CUDA_PTX_REGISTERS_CUH
#define MLA_CUDA_PTX_REGISTERS_CUH

/* clang-format off */
#define MLA_NAMES_1 "%0"
#define MLA_NAMES_2 "%0, %1"
#define MLA_NAMES_4 "%0, %1, %2, %3"
#define MLA_NAMES_AT_0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define MLA_NAMES_AT_8 "%8, %9, %10, %11, %12, %13, %14, %15"
#define MLA_NAMES_AT_16 "%16, %17, %18, %19, %20, %21, %22, %23"
#define MLA_NAMES_AT_24 "%24, %25, %26, %27, %28, %29, %30, %31"
#define MLA_NAMES_AT_32 "%32, %33, %34, %35, %36, %37, %38, %39"
#define MLA_NAMES_AT_40 "%40, %41, %42, %43, %44, %45, %46, %47"
#define MLA_NAMES_AT_48 "%48, %49, %50, %51, %52, %53, %54, %55"
#define MLA_NAMES_AT_56 "%56, %57, %58, %59, %60, %61, %62, %63"
#define MLA_NAMES_AT_64 "%64, %65, %66, %67, %68, %69, %70, %71"
#define MLA_NAMES_AT_72 "%72, %73, %74, %75, %76, %77, %78, %79"
#define MLA_NAMES_AT_80 "%80, %81, %82, %83, %84, %85, %86, %87"
#define MLA_NAMES_AT_88 "%88, %89, %90, %91, %92, %93, %94, %95"
#define MLA_NAMES_AT_96 "%96, %97, %98, %99, %100, %101, %102, %103"
#define MLA_NAMES_AT_104 "%104, %105, %106, %107, %108, %109, %110, %111"
#define MLA_NAMES_AT_112 "%112, %113, %114, %115, %116, %117, %118, %119"
#define MLA_NAMES_AT_120 "%120, %121, %122, %123, %124, %125, %126, %127"
#define MLA_NAMES_8 MLA_NAMES_AT_0
#define MLA_NAMES_12 MLA_NAMES_8 ", %8, %9, %10, %11"
#define MLA_NAMES_16 MLA_NAMES_8 ", " MLA_NAMES_AT_8
#define MLA_NAMES_24 MLA_NAMES_16 ", " MLA_NAMES_AT_16
#define MLA_NAMES_32 MLA_NAMES_24 ", " MLA_NAMES_AT_24
#define MLA_NAMES_40 MLA_NAMES_32 ", " MLA_NAMES_AT_32
#define MLA_NAMES_48 MLA_NAMES_40 ", " MLA_NAMES_AT_40
#define MLA_NAMES_56 MLA_NAMES_48 ", " MLA_NAMES_AT_48
#define MLA_NAMES_64 MLA_NAMES_56 ", " MLA_NAMES_AT_56
#define MLA_NAMES_72 MLA_NAMES_64 ", " MLA_NAMES_AT_64
#define MLA_NAMES_80 MLA_NAMES_72 ", " MLA_NAMES_AT_72
#define MLA_NAMES_88 MLA_NAMES_80 ", " MLA_NAMES_AT_80
#define MLA_NAMES_96 MLA_NAMES_88 ", " MLA_NAMES_AT_88
#define MLA_NAMES_104 MLA_NAMES_96 ", " MLA_NAMES_AT_96
#define MLA_NAMES_112 MLA_NAMES_104 ", " MLA_NAMES_AT_104
#define MLA_NAMES_120 MLA_NAMES_112 ", " MLA_NAMES_AT_112
#define MLA_NAMES_128 MLA_NAMES_120 ", " MLA_NAMES_AT_120

#define MLA_OPERANDS_1(c, r) c(r[0])
#define MLA_OPERANDS_2(c, r) c(r[0]), c(r[1])
#define MLA_OPERANDS_4_AT(c, r, i) c(r[i]), c(r[i + 1]), c(r[i + 2]), c(r[i + 3])
#define MLA_OPERANDS_8_AT(c, r, i) MLA_OPERANDS_4_AT(c, r, i), MLA_OPERANDS_4_AT(c, r, i + 4)
#define MLA_OPERANDS_4(c, r) MLA_OPERANDS_4_AT(c, r, 0)
#define MLA_OPERANDS_8(c, r) MLA_OPERANDS_8_AT(c, r, 0)
#define MLA_OPERANDS_12(c, r) MLA_OPERANDS_8(c, r), MLA_OPERANDS_4_AT(c, r, 8)
#define MLA_OPERANDS_16(c, r) MLA_OPERANDS_8(c, r), MLA_OPERANDS_8_AT(c, r, 8)
#define MLA_OPERANDS_24(c, r) MLA_OPERANDS_16(c, r), MLA_OPERANDS_8_AT(c, r, 16)
#define MLA_OPERANDS_32(c, r) MLA_OPERANDS_24(c, r), MLA_OPERANDS_8_AT(c, r, 24)
#define MLA_OPERANDS_40(c, r) MLA_OPERANDS_32(c, r), MLA_OPERANDS_8_AT(c, r, 32)
#define MLA_OPERANDS_48(c, r) MLA_OPERANDS_40(c, r), MLA_OPERANDS_8_AT(c, r, 40)
#define MLA_OPERANDS_56(c, r) MLA_OPERANDS_48(c, r), MLA_OPERANDS_8_AT(c, r, 48)
#define MLA_OPERANDS_64(c, r) MLA_OPERANDS_56(c, r), MLA_OPERANDS_8_AT(c, r, 56)
#define MLA_OPERANDS_72(c, r) MLA_OPERANDS_64(c, r), MLA_OPERANDS_8_AT(c, r, 64)
#define MLA_OPERANDS_80(c, r) MLA_OPERANDS_72(c, r), MLA_OPERANDS_8_AT(c, r, 72)
#define MLA_OPERANDS_88(c, r) MLA_OPERANDS_80(c, r), MLA_OPERANDS_8_AT(c, r, 80)
#define MLA_OPERANDS_96(c, r) MLA_OPERANDS_88(c, r), MLA_OPERANDS_8_AT(c, r, 88)
#define MLA_OPERANDS_104(c, r) MLA_OPERANDS_96(c, r), MLA_OPERANDS_8_AT(c, r, 96)
#define MLA_OPERANDS_112(c, r) MLA_OPERANDS_104(c, r), MLA_OPERANDS_8_AT(c, r, 104)
#define MLA_OPERANDS_120(c, r) MLA_OPERANDS_112(c, r), MLA_OPERANDS_8_AT(c, r, 112)
#define MLA_OPERANDS_128(c, r) MLA_OPERANDS_120(c, r), MLA_OPERANDS_8_AT(c, r, 120)
/* clang-format on */

#endif
