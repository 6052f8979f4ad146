/* The two names of CUDA that TensorRT's headers use, for building without a CUDA toolkit. */
#ifndef DPI_CUDA_TYPES_H
#define DPI_CUDA_TYPES_H

typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;

#endif
