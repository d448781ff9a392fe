"""Views with long bodies, both ways."""

import hashlib

import told
from django.http import FileResponse, JsonResponse, StreamingHttpResponse
from django.views.decorators.csrf import csrf_exempt


@csrf_exempt
def upload(request):
    """Hash an uploaded file."""
    file = request.FILES['file']
    digest = hashlib.sha256()
    for chunk in file.chunks():
        digest.update(chunk)
    answer = {'name': file.name, 'size': file.size, 'sha256': digest.hexdigest(), 'title': request.POST['title']}
    return JsonResponse(answer)


def stream(request):
    """Give three pieces, each when told to."""

    def pieces():
        for each in range(3):
            told.await_go(f'{request.GET["key"]}.{each}')
            yield f'piece {each}\n'

    return StreamingHttpResponse(pieces(), content_type='text/plain')


def download(request):
    """Give a file."""
    return FileResponse((told.DATA / request.GET['name']).open('rb'), as_attachment=True)
